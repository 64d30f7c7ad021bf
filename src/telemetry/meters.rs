//! The list of all metrics except histograms. No label names a player, an inventory or a caller.
//!
//! Counters are read only when metrics are collected, so that counting costs no more than an atomic instruction.

use super::Exporters;
use super::instruments::trigger;
use super::settings::TelemetrySettings;
use crate::statistics::{
    CommitFailure, ConnectionRefusal, EngineCounts, MutationOutcome, Reloads, RpcStatistics, StreamStatistics,
    TransportStatistics,
};
use crate::store::StoreUsage;
use crate::store::embedded::FORMAT_VERSION;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::Registry;
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use std::sync::Arc;

/// The sources of the metrics. A source must not keep the store open or the commit loop running.
pub struct Sources {
    pub rpc: Arc<RpcStatistics>,
    pub streams: Arc<StreamStatistics>,
    pub transport: Arc<TransportStatistics>,
    /// The counts of reloads, by what was reloaded: `certificate`, `jwks`, `config`.
    pub reloads: [(&'static str, Arc<Reloads>); 3],
    pub engine: Arc<dyn Fn() -> EngineCounts + Send + Sync>,
    /// Returns the usage of the store, or `None` if the store does not report it or is closed.
    pub store: Arc<dyn Fn() -> Option<StoreUsage> + Send + Sync>,
    pub is_draining: Arc<dyn Fn() -> bool + Send + Sync>,
}

pub(super) fn resource(settings: &TelemetrySettings) -> Resource {
    let attributes = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", settings.instance.clone()),
    ];
    Resource::builder().with_service_name("slotcast").with_attributes(attributes).build()
}

/// Returns a meter provider with up to two readers: Prometheus scrapes and, with `exporters`, OTLP.
pub(super) fn provider(
    settings: &TelemetrySettings,
    registry: &Registry,
    exporters: Option<&Exporters>,
) -> SdkMeterProvider {
    let mut builder = SdkMeterProvider::builder().with_resource(resource(settings));
    match opentelemetry_prometheus::exporter().with_registry(registry.clone()).scope_info_enabled(false).build() {
        Ok(exporter) => builder = builder.with_reader(exporter),
        // The registry is new, so its names cannot conflict.
        Err(error) => tracing::error!(%error, "the meters cannot be scraped"),
    }
    if let Some(reader) = exporters.and_then(Exporters::meter_reader) {
        builder = builder.with_reader(reader);
    }
    builder.build()
}

pub(super) fn meter(provider: &SdkMeterProvider) -> Meter {
    provider.meter("slotcast")
}

pub(super) fn observe(meter: &Meter, sources: Sources) {
    let Sources { rpc, streams, transport, reloads, engine, store, is_draining } = sources;
    let list = List { meter };
    list.rpc(&rpc);
    list.streams(&streams);
    list.engine(&engine);
    list.transport(&transport);
    list.reloads(reloads);
    list.store(&store);
    list.gauge("slotcast.build_info", "", "Version and store format of the program; the value is always 1.", |gauge| {
        let format = i64::from(FORMAT_VERSION);
        let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
        gauge.observe(1, &[version, KeyValue::new("store_format", format)]);
    });
    list.gauge("slotcast.draining", "", "1 while the service ends.", move |gauge| {
        gauge.observe(u64::from(is_draining()), &[]);
    });
}

/// Registers CPU time, memory, file descriptors and threads of the process, under the names that all Prometheus clients
/// use. They are read from /proc on each scrape.
#[cfg(target_os = "linux")]
pub(super) fn observe_process(registry: &Registry) {
    if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
        // The registry is new, so no collector with the same names is registered.
        tracing::error!(%error, "process metrics are not available");
    }
}

/// Does nothing, because only Linux has /proc.
#[cfg(not(target_os = "linux"))]
pub(super) fn observe_process(_: &Registry) {}

type Observed<'a> = &'a dyn AsyncInstrument<u64>;

struct List<'a> {
    meter: &'a Meter,
}

impl List<'_> {
    fn counter(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(Observed<'_>) + Send + Sync + 'static,
    ) {
        let counter = self.meter.u64_observable_counter(name).with_unit(unit).with_description(description);
        counter.with_callback(move |observed| read(observed)).build();
    }

    fn gauge(
        &self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(Observed<'_>) + Send + Sync + 'static,
    ) {
        let gauge = self.meter.u64_observable_gauge(name).with_unit(unit).with_description(description);
        gauge.with_callback(move |observed| read(observed)).build();
    }

    fn rpc(&self, rpc: &Arc<RpcStatistics>) {
        let read = rpc.clone();
        self.counter("slotcast.rpc.messages", "{message}", "Messages of streams.", move |counter| {
            for (method, counts) in read.counts().filter(|(_, counts)| counts.is_stream && counts.begun > 0) {
                for (direction, messages) in [("received", counts.received), ("sent", counts.sent)] {
                    let attributes = [KeyValue::new("rpc.method", method), KeyValue::new("direction", direction)];
                    counter.observe(messages, &attributes);
                }
            }
        });
        let read = rpc.clone();
        let active = self.meter.i64_observable_up_down_counter("slotcast.rpc.calls.active").with_unit("{call}");
        active
            .with_description("Calls that have not ended; a stream is one.")
            .with_callback(move |observed| {
                for (method, counts) in read.counts().filter(|(_, counts)| counts.begun > 0) {
                    let active = i64::try_from(counts.active).unwrap_or(i64::MAX);
                    observed.observe(active, &[KeyValue::new("rpc.method", method)]);
                }
            })
            .build();
        let read = rpc.clone();
        self.counter("slotcast.refusals", "{call}", "Calls answered with an error, by its reason.", move |counter| {
            for (reason, calls) in read.refusals() {
                counter.observe(calls, &[KeyValue::new("reason", reason)]);
            }
        });
    }

    fn streams(&self, streams: &Arc<StreamStatistics>) {
        let read = streams.clone();
        self.counter("slotcast.syncs", "{sync}", "Frames with changes that were sent.", move |counter| {
            for (kind, waiting, count) in read.counts().syncs {
                let attributes = [KeyValue::new("kind", kind.name()), KeyValue::new("trigger", trigger(waiting))];
                counter.observe(count.messages, &attributes);
            }
        });
        let read = streams.clone();
        self.counter("slotcast.sync.size", "By", "Bytes of frames with changes.", move |counter| {
            for (kind, waiting, count) in read.counts().syncs {
                let attributes = [KeyValue::new("kind", kind.name()), KeyValue::new("trigger", trigger(waiting))];
                counter.observe(count.bytes, &attributes);
            }
        });
        let read = streams.clone();
        let full_size = "Bytes that a full sync at once for each change would have cost.";
        self.counter("slotcast.sync.full_size", "By", full_size, move |counter| {
            counter.observe(read.counts().immediate_full.bytes, &[]);
        });
        let read = streams.clone();
        self.gauge("slotcast.streams", "{stream}", "Open streams.", move |gauge| {
            gauge.observe(read.counts().open, &[]);
        });
        let read = streams.clone();
        self.counter("slotcast.desyncs", "{desync}", "Readers that reported a desync.", move |counter| {
            counter.observe(read.counts().desyncs_reported, &[]);
        });
        let read = streams.clone();
        let mismatches = "Times that the new way would have left a reader with something else than there is.";
        self.counter("slotcast.shadow.mismatches", "{mismatch}", mismatches, move |counter| {
            counter.observe(read.counts().shadow.mismatches, &[]);
        });
    }

    fn engine(&self, engine: &Arc<dyn Fn() -> EngineCounts + Send + Sync>) {
        let read = engine.clone();
        self.counter("slotcast.mutations", "{mutation}", "Mutations, by how they ended.", move |counter| {
            for (outcome, mutations) in MutationOutcome::ALL.into_iter().zip(read().mutations) {
                counter.observe(mutations, &[KeyValue::new("outcome", outcome.name())]);
            }
        });
        let read = engine.clone();
        self.counter("slotcast.commit.failures", "{commit}", "Batches that were not committed.", move |counter| {
            for (failure, commits) in CommitFailure::ALL.into_iter().zip(read().failures) {
                counter.observe(commits, &[KeyValue::new("reason", failure.name())]);
            }
        });
        let read = engine.clone();
        self.gauge("slotcast.commit.queue.length", "{request}", "What waits for the commit loop.", move |gauge| {
            gauge.observe(read().queue, &[]);
        });
        let read = engine.clone();
        self.gauge("slotcast.commit.queue.limit", "{request}", "The most that may wait.", move |gauge| {
            gauge.observe(read().queue_max, &[]);
        });
        let read = engine.clone();
        self.gauge("slotcast.inventories.hot", "{inventory}", "Inventories in memory.", move |gauge| {
            gauge.observe(read().hot_inventories, &[]);
        });
    }

    fn transport(&self, transport: &Arc<TransportStatistics>) {
        let read = transport.clone();
        self.gauge("slotcast.connections", "{connection}", "Open connections.", move |gauge| {
            gauge.observe(read.connections(), &[]);
        });
        let read = transport.clone();
        let refused = "Connections that were not served.";
        self.counter("slotcast.connections.refused", "{connection}", refused, move |counter| {
            for refused in ConnectionRefusal::ALL {
                counter.observe(read.refused(refused), &[KeyValue::new("reason", refused.reason())]);
            }
        });
        let read = transport.clone();
        let ends = "When the certificate that is served ends, in seconds since 1970.";
        self.gauge("slotcast.certificate.not_after", "s", ends, move |gauge| {
            if let Some(unix_s) = read.certificate_not_after() {
                gauge.observe(u64::try_from(unix_s).unwrap_or_default(), &[]);
            }
        });
    }

    fn reloads(&self, reloads: [(&'static str, Arc<Reloads>); 3]) {
        self.counter("slotcast.reloads", "{reload}", "Files that were read again.", move |counter| {
            for (what, reloads) in &reloads {
                for (outcome, count) in [("ok", reloads.succeeded()), ("failed", reloads.failed())] {
                    counter.observe(count, &[KeyValue::new("what", *what), KeyValue::new("outcome", outcome)]);
                }
            }
        });
    }

    fn store(&self, store: &Arc<dyn Fn() -> Option<StoreUsage> + Send + Sync>) {
        let gauge = |name, unit, description, field: fn(&StoreUsage) -> u64| {
            let read = store.clone();
            self.gauge(name, unit, description, move |gauge| {
                if let Some(usage) = read() {
                    gauge.observe(field(&usage), &[]);
                }
            });
        };
        gauge("slotcast.store.size", "By", "What the store takes on disk.", |usage| usage.bytes);
        gauge("slotcast.store.limit", "By", "The most that it may take; 0 is no limit.", |usage| usage.bytes_max);
        gauge("slotcast.store.unfolded", "{record}", "Records not yet folded into the table.", |usage| usage.unfolded);
    }
}
