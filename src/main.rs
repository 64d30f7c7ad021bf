use std::process::ExitCode;

/// glibc's allocator costs 5 to 20 % of the CPU here, on streams up to half.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    slotcast::cli::run()
}
