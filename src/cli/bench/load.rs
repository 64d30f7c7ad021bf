//! The load generator: one thread that drives all connections.
//!
//! In a closed loop, each reply triggers the next request, so the server decides the rate. In an open loop, requests are
//! due at a fixed rate whatever the server does, and latency counts from the time at which the request was due: a server
//! that stalls cannot make its own latency look better (no coordinated omission).

use super::cpu::{self, CpuTimes};
use super::http2::{Connection, ConnectionError, Event};
use super::recorder::{Measurement, Recorder};
use super::subscribers::Subscribers;
use super::workload::{Sent, Workload};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Maximum number of calls of an open loop that are in flight. Further ones wait in the generator, and their latency
/// counts.
const OPEN_LOOP_IN_FLIGHT_MAX: usize = 10_000;
/// How long to wait after a measurement for the calls in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often to check whether the command was interrupted.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Connection(#[from] ConnectionError),
    #[error("cannot wait for the connections: {0}")]
    Poll(io::Error),
    #[error("cannot read the CPU time of the server: {0} (is it still running?)")]
    Cpu(io::Error),
    #[error("{calls} calls got no reply within {} s", DRAIN_TIMEOUT.as_secs())]
    NoReply { calls: usize },
}

#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    #[error("{0}")]
    Load(#[from] LoadError),
    #[error("{0}")]
    Failed(String),
}

/// When requests are sent.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// This many calls are in flight over all connections.
    Closed { in_flight: usize },
    /// This many calls become due each second, evenly spaced.
    Open { per_second: f64 },
}

/// A call in flight.
#[derive(Debug)]
pub struct InFlight {
    /// When the request was due, since the start of the loop.
    due: Duration,
    sent: Sent,
    /// The revision that the mutation created, once its reply has arrived.
    revision: u64,
}

/// Connections that make calls of one workload.
#[derive(Debug)]
pub struct Source<'a> {
    pub connections: &'a mut [Connection<InFlight>],
    pub workload: &'a mut Workload,
    pub pace: Pace,
    /// How many calls have been started.
    started: u64,
    /// A closed loop ends after this many calls.
    calls_max: u64,
    recorder: Recorder,
}

impl<'a> Source<'a> {
    pub fn new(connections: &'a mut [Connection<InFlight>], workload: &'a mut Workload, pace: Pace) -> Self {
        Self { connections, workload, pace, started: 0, calls_max: u64::MAX, recorder: Recorder::default() }
    }

    fn in_flight(&self) -> usize {
        self.connections.iter().map(Connection::in_flight).sum()
    }

    /// Time at which the next call of an open loop is due.
    fn next_due(&self) -> Option<Duration> {
        match self.pace {
            Pace::Closed { .. } => None,
            Pace::Open { per_second } => Some(Duration::from_secs_f64(self.started as f64 / per_second)),
        }
    }

    /// Starts the calls that are due.
    fn start_due(&mut self, now: Duration, message: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let Pace::Open { .. } = self.pace else { return Ok(()) };
        while let Some(due) = self.next_due().filter(|due| *due <= now)
            && self.in_flight() < OPEN_LOOP_IN_FLIGHT_MAX
        {
            let connection = self.started as usize % self.connections.len();
            self.started += 1;
            start(&mut self.connections[connection], self.workload, due, message)?;
        }
        Ok(())
    }

    /// Keeps a connection of a closed loop at its number of calls.
    fn refill(&mut self, connection: usize, now: Duration, message: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let Pace::Closed { in_flight } = self.pace else { return Ok(()) };
        let share = in_flight.div_ceil(self.connections.len());
        let connection = &mut self.connections[connection];
        while connection.in_flight() < share && self.started < self.calls_max {
            self.started += 1;
            start(connection, self.workload, now, message)?;
        }
        Ok(())
    }

    /// Receives the replies of a connection.
    fn receive(
        &mut self,
        connection: usize,
        now: Duration,
        mut subscribers: Option<&mut Subscribers>,
    ) -> Result<(), ConnectionError> {
        let Self { connections, workload, recorder, .. } = self;
        connections[connection].receive(&mut |event| match event {
            Event::Message { call, message } => {
                if let Err(error) = workload.verify_message(call.sent, message) {
                    recorder.fail(error);
                }
                if subscribers.is_some() {
                    call.revision = call.sent.revision(message);
                }
            }
            Event::Ended { call, messages, status } => match Workload::verify_end(call.sent, messages, &status) {
                Ok(()) => {
                    recorder.record(call.due, now);
                    if let Some(subscribers) = &mut subscribers {
                        subscribers.replied(call.sent.inventory, call.revision, now);
                    }
                }
                Err(error) => recorder.fail(error),
            },
        })
    }
}

fn start(
    connection: &mut Connection<InFlight>,
    workload: &mut Workload,
    due: Duration,
    message: &mut Vec<u8>,
) -> Result<(), ConnectionError> {
    let (path, sent) = workload.next(message);
    connection.start(path, message, InFlight { due, sent, revision: 0 })
}

/// Duration of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Phases {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// A run of the load generator.
pub struct Run<'a> {
    pub sources: Vec<Source<'a>>,
    pub subscribers: Option<&'a mut Subscribers>,
    /// The process whose CPU time is measured.
    pub server: Option<u32>,
    pub interrupted: &'a AtomicBool,
}

/// CPU times at one moment.
struct Sample {
    at: Duration,
    server: Option<CpuTimes>,
    generator: Duration,
}

impl Run<'_> {
    /// Runs the load, and returns the measurement of each source.
    pub fn measure(mut self, phases: Phases) -> Result<Vec<Measurement>, LoadError> {
        let began = Instant::now();
        let end = phases.warm_up + phases.measured;
        let mut message = Vec::new();
        for source in &mut self.sources {
            for connection in 0..source.connections.len() {
                source.refill(connection, Duration::ZERO, &mut message)?;
            }
        }
        self.drive_until(began, phases.warm_up, &mut message)?;
        let first = self.sample(began)?;
        self.sources.iter_mut().for_each(|source| source.recorder.begin(first.at, end));
        self.subscribers.iter_mut().for_each(|subscribers| subscribers.begin());
        self.drive_until(began, end, &mut message)?;
        let last = self.sample(began)?;
        self.sources.iter_mut().for_each(|source| source.recorder.end());
        self.subscribers.iter_mut().for_each(|subscribers| subscribers.end());
        let unsent = self.sources.iter().map(|source| unsent(source, last.at)).collect::<Vec<_>>();
        self.drain(began)?;
        let server = last.server.zip(first.server).map(|(last, first)| last - first);
        let elapsed = last.at - first.at;
        let generator_share = (last.generator - first.generator).as_secs_f64() / elapsed.as_secs_f64();
        let measurement =
            |(source, unsent): (Source<'_>, u64)| source.recorder.measurement(elapsed, server, generator_share, unsent);
        Ok(self.sources.into_iter().zip(unsent).map(measurement).collect())
    }

    /// Makes a number of calls with each source, and returns an error if one fails.
    pub fn complete(mut self, calls: u64) -> Result<(), CompleteError> {
        let began = Instant::now();
        let mut message = Vec::new();
        for source in &mut self.sources {
            source.calls_max = calls;
            for connection in 0..source.connections.len() {
                source.refill(connection, Duration::ZERO, &mut message).map_err(LoadError::from)?;
            }
        }
        while self.sources.iter().any(|source| source.in_flight() > 0) {
            self.exchange(began, INTERRUPT_INTERVAL, Some(&mut message))?;
        }
        let failure = self.sources.into_iter().find_map(|source| source.recorder.into_first_error());
        failure.map_or(Ok(()), |failure| Err(CompleteError::Failed(failure)))
    }

    fn sample(&self, began: Instant) -> Result<Sample, LoadError> {
        let server = self.server.map(CpuTimes::of_process).transpose().map_err(LoadError::Cpu)?;
        // The generator's share is unknown on systems without /proc.
        let generator = cpu::of_this_thread().unwrap_or_default();
        Ok(Sample { at: began.elapsed(), server, generator })
    }

    fn drive_until(&mut self, began: Instant, end: Duration, message: &mut Vec<u8>) -> Result<(), LoadError> {
        loop {
            let now = began.elapsed();
            if now >= end {
                return Ok(());
            }
            for source in &mut self.sources {
                source.start_due(now, message)?;
            }
            let next = self.sources.iter().filter_map(Source::next_due).min().unwrap_or(end).min(end);
            self.exchange(began, next.saturating_sub(began.elapsed()), Some(message))?;
        }
    }

    /// Waits for the calls in flight, without starting others.
    fn drain(&mut self, began: Instant) -> Result<(), LoadError> {
        let end = began.elapsed() + DRAIN_TIMEOUT;
        loop {
            let calls: usize = self.sources.iter().map(Source::in_flight).sum();
            let late = self.subscribers.as_ref().map_or(0, |subscribers| subscribers.late());
            if calls == 0 && late == 0 {
                return Ok(());
            }
            if began.elapsed() >= end {
                // The subscribers report frames that are missing.
                return if calls == 0 { Ok(()) } else { Err(LoadError::NoReply { calls }) };
            }
            self.exchange(began, INTERRUPT_INTERVAL, None)?;
        }
    }

    /// Sends what is to be sent, waits until a connection is ready or the time is over, and receives. With a message
    /// buffer, closed loops continue.
    fn exchange(
        &mut self,
        began: Instant,
        timeout: Duration,
        mut message: Option<&mut Vec<u8>>,
    ) -> Result<(), LoadError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted);
        }
        for connection in self.sources.iter_mut().flat_map(|source| source.connections.iter_mut()) {
            connection.flush()?;
        }
        let ready = self.wait(timeout.min(INTERRUPT_INTERVAL))?;
        let now = began.elapsed();
        let mut ready = ready.into_iter();
        for source in &mut self.sources {
            for connection in 0..source.connections.len() {
                if !ready.next().unwrap_or_default() {
                    continue;
                }
                source.receive(connection, now, self.subscribers.as_deref_mut())?;
                if let Some(message) = &mut message {
                    source.refill(connection, now, message)?;
                }
                source.connections[connection].flush()?;
            }
        }
        if let Some(subscribers) = &mut self.subscribers {
            subscribers.receive(&mut ready, now)?;
        }
        Ok(())
    }

    /// Waits, and returns for each connection whether it is ready.
    fn wait(&self, timeout: Duration) -> Result<Vec<bool>, LoadError> {
        let calls = self.sources.iter().flat_map(|source| source.connections.iter());
        let mut descriptors: Vec<PollFd<'_>> =
            calls.map(|connection| poll_entry(connection, connection.has_unsent())).collect();
        if let Some(subscribers) = &self.subscribers {
            descriptors.extend(
                subscribers.connections().iter().map(|connection| poll_entry(connection, connection.has_unsent())),
            );
        }
        let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LoadError::Poll(error.into())),
        }
        Ok(descriptors.iter().map(|descriptor| !descriptor.revents().is_empty()).collect())
    }
}

fn poll_entry(connection: &impl std::os::fd::AsFd, has_unsent: bool) -> PollFd<'_> {
    let events = if has_unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    PollFd::new(connection, events)
}

/// Number of calls of an open loop that were due but not started, because too many were in flight.
fn unsent(source: &Source<'_>, now: Duration) -> u64 {
    match source.pace {
        // A few calls became due while the measurement ended.
        Pace::Open { .. } if source.in_flight() < OPEN_LOOP_IN_FLIGHT_MAX => 0,
        Pace::Closed { .. } => 0,
        Pace::Open { per_second } => ((now.as_secs_f64() * per_second) as u64).saturating_sub(source.started),
    }
}
