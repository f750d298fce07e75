//! Runs what is not trusted on a thread of its own, bounded in memory and time.
//!
//! A template can make values of any size in few steps, and Rust offers no way
//! to fail an allocation short of ending the process. So an allocation above
//! the bound does not return: its thread sleeps for good, with what it holds,
//! and whoever waits for it goes on. A caller should not run the same work
//! again then, or such threads pile up.
//!
//! The same allocations tell how deep the work has recursed: a value that holds
//! itself would be printed, compared or hashed until the stack ends, and each
//! level of that allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::ptr::null;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::mpsc::{sync_channel, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Address space, of which only what is used costs memory. Printing, comparing
/// or dropping a value recurses as deep as a template can nest one in its steps.
pub const STACK: usize = 512 << 20;
/// Of it, for what recurses without an allocation.
const STACK_LEFT: usize = 64 << 20;
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Left to a thread that is to stop: no freeing makes up for it.
const NOTHING: i64 = i64::MIN / 2;
/// What a thread leaves that has used up its stack.
const TOO_DEEP: i64 = i64::MIN;

thread_local! {
    /// What the thread may still allocate; null: any amount.
    static LEFT: Cell<*const AtomicI64> = const { Cell::new(null()) };
    /// The lowest address down to which its stack may grow.
    static STACK_END: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `bytes` more are in use, or less if negative.
fn count(bytes: i64) {
    let left = LEFT.get();
    if left.is_null() {
        return;
    }
    // What it points at lives until `run`'s thread sets it back to null.
    let left = unsafe { &*left };
    let rest = left.fetch_sub(bytes, Relaxed) - bytes;
    if bytes <= 0 {
        return;
    }
    let too_deep = stack_address() < STACK_END.get();
    if too_deep {
        left.store(TOO_DEEP, Relaxed);
    }
    if too_deep || rest < 0 {
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
}

#[inline(never)]
fn stack_address() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)) as usize
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        System.alloc(layout)
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        System.alloc_zeroed(layout)
    }
    unsafe fn realloc(&self, data: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a while.
        count(size as i64);
        let moved = System.realloc(data, layout, size);
        count(-(layout.size() as i64));
        moved
    }
    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        System.dealloc(data, layout);
        count(-(layout.size() as i64));
    }
}

/// Why there is no result.
pub enum Error {
    /// The work was left behind, for this reason.
    Stopped(String),
    /// It was not begun: the system gives no thread.
    NoThread(std::io::Error),
}

/// What `work` gives; panics if it does.
pub fn run<T: Send + 'static>(
    memory: usize,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let left = Arc::new(AtomicI64::new(memory as i64));
    let (sender, receiver) = sync_channel(1);
    let of_thread = left.clone();
    thread::Builder::new()
        .stack_size(STACK)
        .spawn(move || {
            STACK_END.set(stack_address().saturating_sub(STACK - STACK_LEFT));
            LEFT.set(Arc::as_ptr(&of_thread));
            let result = catch_unwind(AssertUnwindSafe(work));
            LEFT.set(null());
            let _ = sender.send(result);
        })
        .map_err(Error::NoThread)?;
    let stopped = |why: String| Err(Error::Stopped(why));
    let deadline = Instant::now() + time;
    loop {
        match receiver.recv_timeout(CHECK_EVERY) {
            Ok(Ok(result)) => return Ok(result),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(RecvTimeoutError::Disconnected) => {
                return stopped("its thread is gone".to_string())
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let rest = left.load(Relaxed);
        if rest == TOO_DEEP {
            return stopped("its values are nested too deep or hold themselves".to_string());
        }
        if rest < 0 {
            return stopped(format!("it needs more than {} MiB of memory", memory >> 20));
        }
        if Instant::now() > deadline {
            left.store(NOTHING, Relaxed);
            return stopped(format!("it takes longer than {} s", time.as_secs()));
        }
    }
}
