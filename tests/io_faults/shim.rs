//! The shim in front of the server's system calls, and the control file that arms it.

use crate::process::remove_settings;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Compiled once for all tests of this process, in a temporary folder.
static LIBRARY: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/io_faults/shim.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-pthread", "-o"]);
    let compiled = compiler.arg(&library).arg(source).arg("-ldl").status().expect("a C compiler is installed");
    assert!(compiled.success(), "the shim does not compile");
    (folder, library)
});

/// The numbers must match `shim.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Database = 0,
    Log = 1,
    Index = 2,
    Any = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syscall {
    Read = 0,
    Write = 1,
    Sync = 2,
    Truncate = 3,
    Open = 4,
}

/// By the name of the thread that makes the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Any = 0,
    Commit = 1,
    Fold = 2,
    Other = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    Eio = 5,
    Enospc = 28,
}

/// Selects the calls that fail, and the error.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    pub kind: Kind,
    pub syscall: Syscall,
    pub caller: Caller,
    pub errno: Errno,
    /// The first matching call that fails, from 1.
    pub first: i64,
    /// Number of calls that fail.
    pub calls: i64,
    pub only_growth: bool,
}

pub struct Control(File);

const SEEN: u64 = 8;
const INJECTED: u64 = 9;
const COUNTS: u64 = 10;
const SYSCALLS: u64 = 5;
const FIELDS: u64 = COUNTS + 3 * SYSCALLS;

impl Control {
    pub fn create(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len(FIELDS * 8).unwrap();
        Self(file)
    }

    pub fn arm(&self, rule: &Rule) {
        let Rule { kind, syscall, caller, errno, first, calls, only_growth } = *rule;
        let fields = [kind as i64, syscall as i64, caller as i64, errno as i64, first, calls, i64::from(only_growth)];
        (1..).zip(fields).for_each(|(field, value)| self.put(field, value));
        self.put(SEEN, 0);
        self.put(INJECTED, 0);
        self.put(0, 1);
    }

    pub fn disarm(&self) {
        self.put(0, 0);
    }

    /// Number of calls that failed since the rule was armed.
    pub fn injected(&self) -> i64 {
        self.get(INJECTED)
    }

    /// Number of these calls since the start, armed or not.
    pub fn count(&self, kind: Kind, syscall: Syscall) -> i64 {
        self.get(COUNTS + kind as u64 * SYSCALLS + syscall as u64)
    }

    fn put(&self, field: u64, value: i64) {
        self.0.write_all_at(&value.to_le_bytes(), field * 8).unwrap();
    }

    fn get(&self, field: u64) -> i64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, field * 8).unwrap();
        i64::from_le_bytes(bytes)
    }
}

/// The server's program with the shim in front of its system calls.
pub fn shimmed_server(data: &Path, control: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slotcast"));
    remove_settings(&mut command);
    command.env("LD_PRELOAD", &LIBRARY.1);
    command.env("IO_FAULTS_FOLDER", data.canonicalize().unwrap()).env("IO_FAULTS_CONTROL", control);
    command
}
