//! Where event loops run: on the processor of the program that waits for them.
//!
//! A program that asks one small thing after another waits for each answer. On another processor,
//! which has gone to sleep meanwhile, an event loop has to be woken by an interrupt, and then wakes
//! the program by another: several times the cost of the answer, most of all in a virtual machine.
//! The kernel's scheduler does not know that the one waits for the other. So a thread that sees such
//! a program goes to the processor where that is, and back to all of its processors when there
//! is work for more than one: large reads and writes, several programs, several requests at once.
//!
//! Where a program is, a thread of its own asks the kernel: that may wait until an execve(2) of the program
//! is over, which in turn may wait for an event loop (it closes files).

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::Pid;

/// What is copied in less time than it takes to wake a processor, in bytes.
const SMALL_BYTES_MAX: usize = 16 << 10;
/// A small request of the same program counts one; a large one, and another program, take away.
const SCORE_MAX: u32 = 64;
const SCORE_LARGE: u32 = 4;
const SCORE_OTHER: u32 = 8;
/// From which score on a thread goes to the program, and below which it leaves.
const SCORE_TO_GO: u32 = 24;
const SCORE_TO_LEAVE: u32 = 12;
/// Requests between two looks at where the program is: these cost as much as an answer.
const LOOK_EVERY: u32 = 64;
/// After so many looks in a row that find requests which did not wait for an answer, a thread leaves.
const BUSY_LOOKS_MAX: u32 = 2;
/// How many looks may be under way; what is more is not asked.
const LOOKS_MAX: usize = 8;
/// No answer yet.
const NOT_KNOWN: u64 = u64::MAX;

#[derive(Default)]
struct Locality {
    /// Who asked last.
    program: u32,
    score: u32,
    /// Requests since the last look, and how often the thread had waited for one until then.
    requests: u32,
    waits: i64,
    /// Looks in a row that found the thread busy.
    busy_looks: u32,
    /// The processors that the thread may use, once it has left them for one.
    all: Option<CpuSet>,
    /// The processor that it is on.
    at: Option<usize>,
    /// The answer to the last look, if one is awaited.
    answer: Option<Answer>,
}

/// A program in the upper half, and the processor that it is on in the lower; [`NOT_KNOWN`] before.
type Answer = Arc<AtomicU64>;

thread_local! {
    static LOCALITY: RefCell<Locality> = RefCell::default();
}

/// Takes note of a request of a thread of a program (0: of nobody's) for so many bytes of data. Only
/// event loops call this.
pub fn arrived(program: u32, bytes: usize) {
    if program != 0 {
        LOCALITY.with_borrow_mut(|locality| locality.arrived(program, bytes));
    }
}

impl Locality {
    fn arrived(&mut self, program: u32, bytes: usize) {
        self.requests += 1;
        if bytes > SMALL_BYTES_MAX {
            self.score = self.score.saturating_sub(SCORE_LARGE);
        } else if program != self.program {
            self.score = self.score.saturating_sub(SCORE_OTHER);
            // It may be elsewhere.
            self.requests = self.requests.max(LOOK_EVERY - SCORE_OTHER);
        } else {
            self.score = (self.score + 1).min(SCORE_MAX);
        }
        self.program = program;
        self.take_answer();
        if self.score < SCORE_TO_LEAVE {
            self.leave();
        } else if self.score >= SCORE_TO_GO && self.requests >= LOOK_EVERY {
            self.look();
        }
    }

    /// Goes where the program is, unless it does not wait for each answer.
    fn look(&mut self) {
        let requests = std::mem::take(&mut self.requests);
        let waits = getrusage(UsageWho::RUSAGE_THREAD)
            .map_or(self.waits, |usage| usage.voluntary_context_switches());
        let waited = waits - std::mem::replace(&mut self.waits, waits);
        if waited < i64::from(requests) / 2 {
            self.busy_looks += 1;
            if self.at.is_none() || self.busy_looks >= BUSY_LOOKS_MAX {
                self.score = 0;
                self.leave();
            }
            return;
        }
        self.busy_looks = 0;
        if self.answer.is_none() {
            let answer = Answer::new(NOT_KNOWN.into());
            if ask(self.program, &answer) {
                self.answer = Some(answer);
            }
        }
    }

    /// Goes where the last look has found the program, if that is known by now.
    fn take_answer(&mut self) {
        let Some(found) = self.answer.as_ref().map(|answer| answer.load(Ordering::Acquire)) else {
            return;
        };
        if found == NOT_KNOWN {
            return;
        }
        self.answer = None;
        let (program, processor) = ((found >> 32) as u32, found as u32);
        if program == self.program && self.score >= SCORE_TO_LEAVE && processor != u32::MAX {
            self.go(processor as usize);
        }
    }

    fn go(&mut self, processor: usize) {
        if self.at == Some(processor) {
            return;
        }
        let this = Pid::from_raw(0);
        if self.all.is_none() {
            self.all = sched_getaffinity(this).ok();
        }
        let Some(all) = &self.all else { return };
        let mut one = CpuSet::new();
        if all.is_set(processor) == Ok(true)
            && one.set(processor).is_ok()
            && sched_setaffinity(this, &one).is_ok()
        {
            self.at = Some(processor);
        }
    }

    fn leave(&mut self) {
        if self.at.take().is_some()
            && let Some(all) = self.all.take()
        {
            let _ = sched_setaffinity(Pid::from_raw(0), &all);
        }
    }
}

/// Has somebody look where a program is. Returns false if nobody can now.
fn ask(program: u32, answer: &Answer) -> bool {
    static LOOKER: OnceLock<Option<SyncSender<(u32, Answer)>>> = OnceLock::new();
    let looker = LOOKER.get_or_init(|| {
        let (sender, receiver) = sync_channel::<(u32, Answer)>(LOOKS_MAX);
        let look = move || {
            for (program, answer) in receiver {
                let processor = processor_of(program).map_or(u32::MAX, |number| number as u32);
                let found = u64::from(program) << 32 | u64::from(processor);
                answer.store(found, Ordering::Release);
            }
        };
        std::thread::Builder::new().name("locality".into()).spawn(look).ok().map(|_| sender)
    });
    looker.as_ref().is_some_and(|looker| looker.try_send((program, answer.clone())).is_ok())
}

/// Returns the processor that a thread is on, or was on last (proc_pid_stat(5), `processor`).
fn processor_of(thread: u32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // The program's name, in brackets, may have any characters in it. The state is field 3.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> CpuSet {
        sched_getaffinity(Pid::from_raw(0)).unwrap()
    }

    #[test]
    fn a_thread_follows_whoever_waits_for_it_and_leaves_for_large_requests() {
        let all = here();
        let this = nix::unistd::gettid().as_raw() as u32;
        let mut locality = Locality::default();
        for _ in 0..100 * LOOK_EVERY {
            std::thread::sleep(std::time::Duration::from_micros(1)); // It waits.
            locality.arrived(this, 0);
            if locality.at.is_some() {
                break;
            }
        }
        let at = locality.at.expect("it has gone to the only program");
        let mut one = CpuSet::new();
        one.set(at).unwrap();
        assert_eq!(here(), one);
        for _ in 0..SCORE_MAX {
            locality.arrived(this, SMALL_BYTES_MAX + 1);
        }
        assert_eq!((locality.at, here()), (None, all));
    }

    #[test]
    fn a_thread_stays_where_requests_do_not_wait_or_are_of_many() {
        let all = here();
        let this = nix::unistd::gettid().as_raw() as u32;
        let mut queue = Locality::default();
        (0..4 * LOOK_EVERY).for_each(|_| queue.arrived(this, 4096));
        assert_eq!(queue.at, None);
        let mut many = Locality::default();
        for number in 0..4 * LOOK_EVERY {
            std::thread::sleep(std::time::Duration::from_micros(1));
            many.arrived(this + number % 2, 0);
        }
        assert_eq!((many.at, many.score), (None, 0));
        assert_eq!(here(), all);
        assert_eq!(processor_of(u32::MAX), None);
    }
}
