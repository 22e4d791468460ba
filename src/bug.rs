//! When the program itself is at fault: a panic is told as any other failure, with what that means for the target.

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Mutex, PoisonError};

/// What the first panic said, and where: those that follow are only caused by it.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// From now on panics are noted, of all threads. In words of Rust they are told where developers look.
pub fn watch() {
    let usual = take_hook();
    set_hook(Box::new(move |info| {
        let payload = info.payload();
        let what = payload.downcast_ref::<&str>().copied();
        let what = what.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given");
        let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
        first().get_or_insert_with(|| format!("{what} (panicked{place})"));
        if cfg!(debug_assertions) || std::env::var_os("RUST_BACKTRACE").is_some() {
            usual(info);
        }
    }));
}

/// Does something; the error is what a panic said.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // What was left half-done is not looked at again: the program says so, and ends.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| first().clone().unwrap_or_else(|| "a thread panicked".into()))
}

fn first() -> std::sync::MutexGuard<'static, Option<String>> {
    FIRST.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_any_thread_is_told_with_its_place() {
        watch();
        let failed = caught(|| {
            std::thread::scope(|scope| {
                scope.spawn(|| panic!("a bug for {}", "tests"));
            });
        });
        let what = failed.expect_err("a panic");
        assert!(what.starts_with("a bug for tests (panicked at src/bug.rs:"), "{what}");
        assert_eq!(caught(|| 5), Ok(5));
    }
}
