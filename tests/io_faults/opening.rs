//! A disk that fails while a store is opened after a crash.

use crate::case::{Place, SHORT_LOG_BYTES, copy, fsck};
use crate::load::{Ledger, Load};
use crate::process::ServerProcess;
use crate::shim::{Caller, Control, Errno, Kind, Rule, Syscall, shimmed_server};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Number of calls of each kind that fail, one at a time.
const DEPTH: i64 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_error_on_open_is_reported_as_an_io_error_and_not_as_damage() {
    let place = Place::new().await;
    let mut server = ServerProcess::start_with(place.command(SHORT_LOG_BYTES), &place.data(), &[]);
    let ledger = Ledger::new(&server.uri);
    let load = Load::start(&ledger, 3);
    let began = Instant::now();
    while ledger.acknowledged() < 200 {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.kill();
    let folder = tempfile::tempdir().unwrap();
    for (kind, calls) in [(Kind::Database, i64::MAX), (Kind::Log, i64::MAX), (Kind::Database, 1), (Kind::Log, 1)] {
        for first in 1..=DEPTH {
            let data = folder.path().join(format!("{kind:?}-{calls}-{first}"));
            copy(&place.data(), &data);
            let control_path = folder.path().join("control");
            let control = Control::create(&control_path);
            let (syscall, caller, errno) = (Syscall::Read, Caller::Any, Errno::Eio);
            control.arm(&Rule { kind, syscall, caller, errno, first, calls, only_growth: false });
            let mut command = shimmed_server(&data, &control_path);
            command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data"]).arg(&data);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // An empty line means that the server exited without listening.
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            if !line.is_empty() {
                child.kill().unwrap();
            }
            let output = child.wait_with_output().unwrap();
            let log = String::from_utf8_lossy(&output.stderr);
            assert!(control.injected() > 0, "{kind:?} {first}: {log}");
            if line.is_empty() {
                assert_eq!(output.status.code(), Some(1), "{kind:?} {first}: {log}");
                assert!(log.contains("I/O error") || log.contains("Input/output error"), "{kind:?} {first}: {log}");
            }
            assert!(line.is_empty() || calls == 1, "{kind:?} {first}: it serves files that it cannot read");
            assert!(
                !log.contains("is damaged") && !log.contains("is corrupt") && !log.contains("backup"),
                "{kind:?} {first}: {log}"
            );
            fsck(&data);
        }
    }
    let mut server = ServerProcess::start(&place.data(), &[]);
    ledger.set_uri(&server.uri);
    load.finish().await;
    ledger.check().await;
    assert!(server.terminate().success());
}
