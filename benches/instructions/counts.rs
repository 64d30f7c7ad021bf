//! Runs the cases under callgrind and reads their counts.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;

/// Makes glibc choose the same memory functions on every x86-64 machine.
const GLIBC_TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM";

/// The number of instructions of each case, for one repetition.
pub struct Counts {
    pub by_case: Vec<(String, u64)>,
}

impl Counts {
    /// Executes all cases once under valgrind.
    pub fn measure() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| format!("cannot create a temporary folder: {error}"))?;
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let dumps = folder.path().join("counts");
        let memory_folder = Some(Path::new("/dev/shm")).filter(|folder| folder.is_dir());
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--quiet", "--zero-before=*count_begins*", "--dump-before=*count_ends*"])
            .arg(format!("--callgrind-out-file={}", dumps.display()))
            .arg(program)
            .arg("run")
            .env("GLIBC_TUNABLES", GLIBC_TUNABLES)
            // The allocator would return memory after some time, which takes an unpredictable number of instructions.
            .env("MIMALLOC_PURGE_DELAY", "-1")
            // System calls do not count, so the stores need no disk.
            .envs(memory_folder.map(|folder| ("TMPDIR", folder)))
            .output()
            .map_err(|error| format!("cannot run valgrind: {error} (install the package valgrind)"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(format!("valgrind failed with {}:\n{text}", output.status));
        }
        let lines = String::from_utf8_lossy(&output.stdout);
        let cases = lines.lines().filter_map(|line| line.split_once('\t'));
        let by_case = cases.zip(1..).map(|((repetitions, name), number)| {
            let repetitions: u64 = repetitions.parse().map_err(|_| format!("malformed line of case {name:?}"))?;
            Ok((name.to_owned(), total(&dumps, number)? / repetitions))
        });
        Ok(Self { by_case: by_case.collect::<Result<_, String>>()? })
    }

    pub fn get(&self, name: &str) -> Option<u64> {
        self.by_case.iter().find(|(case, _)| case == name).map(|(_, count)| *count)
    }
}

/// Reads the total of one dump: `name.number` beside the final one.
fn total(dumps: &Path, number: usize) -> Result<u64, String> {
    let path = dumps.with_extension(number.to_string());
    let text = std::fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: ")).next_back();
    totals.and_then(|total| total.trim().parse().ok()).ok_or_else(|| format!("{} has no total", path.display()))
}

/// Executes `work` for `warm_up` numbers from 0, then counts `repetitions` more.
pub fn count(name: &str, warm_up: usize, repetitions: usize, mut work: impl FnMut(usize)) {
    (0..warm_up).for_each(&mut work);
    count_begins();
    (warm_up..warm_up + repetitions).for_each(&mut work);
    count_ends();
    println!("{repetitions}\t{name}");
}

/// Callgrind sets all counts to zero here. Different constants keep the compiler from merging the two functions.
#[inline(never)]
fn count_begins() {
    black_box(1);
}

/// Callgrind writes all counts here.
#[inline(never)]
fn count_ends() {
    black_box(2);
}
