//! The list of all metrics except histograms. No label names a player, an inventory or a caller.
//!
//! Counters are read only when metrics are collected, so that counting costs no more than an atomic instruction.

use super::Exporters;
use super::instruments::trigger_name;
use super::settings::TelemetrySettings;
use crate::statistics::{
    CommitFailure, ConnectionRefusal, EngineStatistics, MutationOutcome, Reloads, RpcStatistics, StreamStatistics,
    TransportStatistics,
};
use crate::store::embedded::FORMAT_VERSION;
use crate::store::{LogUsage, StoreUsage};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::Registry;
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use std::sync::Arc;

/// The sources of the metrics. A source must not keep the store open or the commit loop running.
pub struct MetricSources {
    pub rpc: Arc<RpcStatistics>,
    pub streams: Arc<StreamStatistics>,
    pub transport: Arc<TransportStatistics>,
    /// The counts of reloads, by what was reloaded: `certificate`, `jwks`, `config`.
    pub reloads: [(&'static str, Arc<Reloads>); 3],
    pub engine: Arc<dyn Fn() -> EngineStatistics + Send + Sync>,
    /// Returns the usage of the store, or `None` if the store does not report it or is closed.
    pub store: Arc<dyn Fn() -> Option<StoreUsage> + Send + Sync>,
    pub is_ending: Arc<dyn Fn() -> bool + Send + Sync>,
}

pub(super) fn resource(settings: &TelemetrySettings) -> Resource {
    let attributes = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", settings.instance_id.clone()),
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
        Err(error) => tracing::error!(%error, "cannot set up the Prometheus metrics"),
    }
    if let Some(reader) = exporters.and_then(Exporters::meter_reader) {
        builder = builder.with_reader(reader);
    }
    builder.build()
}

pub(super) fn meter(provider: &SdkMeterProvider) -> Meter {
    provider.meter("slotcast")
}

pub(super) fn register(meter: &Meter, sources: MetricSources) {
    let MetricSources { rpc, streams, transport, reloads, engine, store, is_ending } = sources;
    let metrics = Metrics { meter };
    metrics.rpc(&rpc);
    metrics.streams(&streams);
    metrics.engine(&engine);
    metrics.transport(&transport);
    metrics.reloads(reloads);
    metrics.store(&store);
    metrics.gauge(
        "slotcast.build_info",
        "",
        "Version and store format of the program, as labels of the constant value 1.",
        |gauge| {
            let format = i64::from(FORMAT_VERSION);
            let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
            gauge.observe(1, &[version, KeyValue::new("store_format", format)]);
        },
    );
    metrics.gauge(
        "slotcast.draining",
        "",
        "Whether the service is draining or its store has failed: 1 if so, otherwise 0.",
        move |gauge| {
            gauge.observe(u64::from(is_ending()), &[]);
        },
    );
}

/// Registers CPU time, memory, file descriptors and threads of the process, under the names that all Prometheus clients
/// use. They are read from /proc on each scrape.
#[cfg(target_os = "linux")]
pub(super) fn register_process(registry: &Registry) {
    if let Err(error) = registry.register(Box::new(ProcessCollector::for_self())) {
        // The registry is new, so no collector with the same names is registered.
        tracing::error!(%error, "process metrics are not available");
    }
}

/// Does nothing, because only Linux has /proc.
#[cfg(not(target_os = "linux"))]
pub(super) fn register_process(_: &Registry) {}

type Observed<'a> = &'a dyn AsyncInstrument<u64>;

struct Metrics<'a> {
    meter: &'a Meter,
}

impl Metrics<'_> {
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
        self.counter("slotcast.rpc.messages", "{message}", "Total number of messages of streams.", move |counter| {
            for (method, counts) in read.counts().filter(|(_, counts)| counts.is_stream && counts.started > 0) {
                for (direction, messages) in [("received", counts.received), ("sent", counts.sent)] {
                    let attributes = [KeyValue::new("rpc.method", method), KeyValue::new("direction", direction)];
                    counter.observe(messages, &attributes);
                }
            }
        });
        let read = rpc.clone();
        let active = self.meter.i64_observable_up_down_counter("slotcast.rpc.calls.active").with_unit("{call}");
        active
            .with_description("Number of active calls; an open stream is one call.")
            .with_callback(move |observed| {
                for (method, counts) in read.counts().filter(|(_, counts)| counts.started > 0) {
                    let active = i64::try_from(counts.active).unwrap_or(i64::MAX);
                    observed.observe(active, &[KeyValue::new("rpc.method", method)]);
                }
            })
            .build();
        let read = rpc.clone();
        self.counter("slotcast.refusals", "{call}", "Total number of failed calls by reason.", move |counter| {
            for (reason, calls) in read.failures() {
                counter.observe(calls, &[KeyValue::new("reason", reason)]);
            }
        });
    }

    fn streams(&self, streams: &Arc<StreamStatistics>) {
        let read = streams.clone();
        self.counter(
            "slotcast.syncs",
            "{sync}",
            "Total number of frames with changes that were sent.",
            move |counter| {
                for (kind, sync_trigger, count) in read.counts().syncs {
                    let attributes =
                        [KeyValue::new("kind", kind.name()), KeyValue::new("trigger", trigger_name(sync_trigger))];
                    counter.observe(count.messages, &attributes);
                }
            },
        );
        let read = streams.clone();
        self.counter(
            "slotcast.sync.size",
            "By",
            "Total size of frames with changes that were sent in bytes.",
            move |counter| {
                for (kind, sync_trigger, count) in read.counts().syncs {
                    let attributes =
                        [KeyValue::new("kind", kind.name()), KeyValue::new("trigger", trigger_name(sync_trigger))];
                    counter.observe(count.bytes, &attributes);
                }
            },
        );
        let read = streams.clone();
        let full_size = "Total size that immediate full syncs for each change would have had in bytes.";
        self.counter("slotcast.sync.full_size", "By", full_size, move |counter| {
            counter.observe(read.counts().immediate_full.bytes, &[]);
        });
        let read = streams.clone();
        self.gauge("slotcast.streams", "{stream}", "Number of open streams.", move |gauge| {
            gauge.observe(read.counts().open, &[]);
        });
        let read = streams.clone();
        self.counter(
            "slotcast.desyncs",
            "{desync}",
            "Total number of desyncs that clients reported.",
            move |counter| {
                counter.observe(read.counts().desyncs_reported, &[]);
            },
        );
        let read = streams.clone();
        let mismatches = "Total number of differences between the replica of shadow mode and the true state.";
        self.counter("slotcast.shadow.mismatches", "{mismatch}", mismatches, move |counter| {
            counter.observe(read.counts().shadow.mismatches, &[]);
        });
    }

    fn engine(&self, engine: &Arc<dyn Fn() -> EngineStatistics + Send + Sync>) {
        let read = engine.clone();
        self.counter("slotcast.mutations", "{mutation}", "Total number of mutations by outcome.", move |counter| {
            for (outcome, mutations) in MutationOutcome::ALL.into_iter().zip(read().mutations) {
                counter.observe(mutations, &[KeyValue::new("outcome", outcome.name())]);
            }
        });
        let read = engine.clone();
        self.counter(
            "slotcast.commit.failures",
            "{commit}",
            "Total number of batches whose commit failed or has an unknown outcome, by reason.",
            move |counter| {
                for (failure, commits) in CommitFailure::ALL.into_iter().zip(read().failures) {
                    counter.observe(commits, &[KeyValue::new("reason", failure.name())]);
                }
            },
        );
        let read = engine.clone();
        self.gauge(
            "slotcast.commit.queue.length",
            "{request}",
            "Number of requests that wait for the commit loop.",
            move |gauge| {
                gauge.observe(read().queue, &[]);
            },
        );
        let read = engine.clone();
        self.gauge(
            "slotcast.commit.queue.limit",
            "{request}",
            "Maximum number of requests that may wait for the commit loop.",
            move |gauge| {
                gauge.observe(read().queue_max, &[]);
            },
        );
        let read = engine.clone();
        self.gauge("slotcast.inventories.hot", "{inventory}", "Number of inventories in memory.", move |gauge| {
            gauge.observe(read().hot_inventories, &[]);
        });
    }

    fn transport(&self, transport: &Arc<TransportStatistics>) {
        let read = transport.clone();
        self.gauge("slotcast.connections", "{connection}", "Number of open connections.", move |gauge| {
            gauge.observe(read.connections(), &[]);
        });
        let read = transport.clone();
        let refused = "Total number of refused connections by reason.";
        self.counter("slotcast.connections.refused", "{connection}", refused, move |counter| {
            for refused in ConnectionRefusal::ALL {
                counter.observe(read.refused(refused), &[KeyValue::new("reason", refused.reason())]);
            }
        });
        let read = transport.clone();
        let expiry = "Expiry time of the server certificate since unix epoch in seconds.";
        self.gauge("slotcast.certificate.not_after", "s", expiry, move |gauge| {
            if let Some(unix_s) = read.certificate_not_after() {
                gauge.observe(u64::try_from(unix_s).unwrap_or_default(), &[]);
            }
        });
    }

    fn reloads(&self, reloads: [(&'static str, Arc<Reloads>); 3]) {
        self.counter("slotcast.reloads", "{reload}", "Total number of reloads of files by outcome.", move |counter| {
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
        gauge("slotcast.store.size", "By", "Size of the store on disk in bytes.", |usage| usage.bytes);
        gauge("slotcast.store.limit", "By", "Maximum size of the store on disk in bytes; 0 means no limit.", |usage| {
            usage.bytes_max
        });
        gauge(
            "slotcast.store.unfolded",
            "{record}",
            "Number of records in the journal that are not yet folded into the table.",
            |usage| usage.unfolded,
        );
        gauge(
            "slotcast.store.maintenance.failing",
            "",
            "Whether the last attempt to fold, to seal or to delete old records failed: 1 if so, otherwise 0.",
            |usage| u64::from(usage.is_maintenance_failing),
        );
        gauge("slotcast.journal.rows", "{row}", "Number of rows in the journal.", |usage| usage.log.journal_rows);
        gauge("slotcast.journal.size", "By", "Size of the rows in the journal in bytes.", |usage| {
            usage.log.journal_bytes
        });
        self.history(store);
    }

    fn history(&self, store: &Arc<dyn Fn() -> Option<StoreUsage> + Send + Sync>) {
        let gauge = |name, unit, description, field: fn(&LogUsage) -> Option<u64>| {
            let read = store.clone();
            self.gauge(name, unit, description, move |gauge| {
                if let Some(value) = read().and_then(|usage| field(&usage.log)) {
                    gauge.observe(value, &[]);
                }
            });
        };
        gauge("slotcast.history.size", "By", "Size of the sealed blocks of the log in bytes.", |log| {
            Some(log.block_bytes)
        });
        gauge("slotcast.history.blocks", "{block}", "Number of sealed blocks of the log.", |log| Some(log.blocks));
        gauge(
            "slotcast.history.earliest",
            "s",
            "Time of the earliest record in the log since unix epoch in seconds.",
            |log| log.earliest_ms.map(|ms| ms / 1_000),
        );
        gauge(
            "slotcast.history.deleted_through",
            "s",
            "Time of the last record that was deleted from the log since unix epoch in seconds; 0 means none.",
            |log| Some(log.trimmed_ms / 1_000),
        );
        gauge("slotcast.history.retention", "s", "Maximum age of sealed records in seconds.", |log| {
            Some(log.age_max_ms / 1_000)
        });
    }
}
