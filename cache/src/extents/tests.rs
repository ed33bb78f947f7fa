use super::*;
use gridvfs_vfs::Verifier;
use proptest::prelude::*;

const CHUNK: usize = 1024;
const SPACE: usize = 8 * CHUNK;
const ONE: Verifier = [1; 8];

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, usize),
    Send(bool),
    Answer(usize, u8),
    Commit(bool),
    Truncate(u64),
    Split(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..SPACE as u64 - 1, 1usize..3000).prop_map(|(at, length)| Op::Insert(at, length)),
        6 => any::<bool>().prop_map(Op::Send),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Op::Answer(which, how)),
        1 => any::<bool>().prop_map(Op::Commit),
        1 => (0..SPACE as u64).prop_map(Op::Truncate),
        1 => (0..SPACE as u64).prop_map(Op::Split),
    ]
}

proptest! {
    /// Whatever happens, what is held reads as last written, calls under way never overlap, and
    /// the charges add up.
    #[test]
    fn what_is_held_is_the_newest(ops in prop::collection::vec(op(), 1..200)) {
        let mut extents = Extents::new(CHUNK);
        let who = Arc::new(Caller { uid: 0, gid: 0, groups: Vec::new() });
        let now = Instant::now();
        let mut newest = vec![None::<u8>; SPACE];
        let mut jobs: Vec<Job> = Vec::new();
        let (mut charged, mut epoch) = (0isize, 1);
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Insert(at, length) => {
                    let length = length.min(SPACE - at as usize);
                    charged += Extents::charge(CHUNK, at, length) as isize;
                    let byte = number as u8;
                    extents.insert(at, Bytes::from(vec![byte; length]), &who, 1, now);
                    newest[at as usize..][..length].fill(Some(byte));
                }
                Op::Send(all) => {
                    let urgency = if all { Urgency::All } else { Urgency::DirtySince(None) };
                    if let Some(job) = extents.next_job(urgency, u64::MAX) {
                        let end = job.offset + job.data.len() as u64;
                        let apart = jobs.iter().all(|other| {
                            let other_end = other.offset + other.data.len() as u64;
                            other.offset >= end || other_end <= job.offset
                        });
                        prop_assert!(apart);
                        prop_assert!(all || job.data.len() == CHUNK);
                        jobs.push(job);
                    }
                }
                Op::Answer(which, how) if !jobs.is_empty() => {
                    let job = jobs.swap_remove(which % jobs.len());
                    let count = job.data.len() as u64;
                    let taken = |count, stable| {
                        Outcome::Taken { count, stable, verifier: ONE, epoch }
                    };
                    let outcome = match how % 4 {
                        0 => Outcome::Unanswered,
                        1 => taken(count.div_ceil(2), false),
                        2 => taken(count, true),
                        _ => taken(count, false),
                    };
                    for (start, end) in extents.answered(job.offset, job.id, outcome) {
                        newest[start as usize..end as usize].fill(None);
                    }
                }
                Op::Commit(kept) => {
                    let verifier = if kept { ONE } else { [2; 8] };
                    let (released, lost) = extents.committed(epoch, verifier, now);
                    prop_assert!(kept == (lost == 0) || released.is_empty());
                    for (start, end) in released {
                        newest[start as usize..end as usize].fill(None);
                    }
                    epoch += 1;
                }
                // The owner waits for calls under way before a truncation.
                Op::Truncate(size) if jobs.is_empty() => {
                    extents.truncate(size);
                    newest[size as usize..].fill(None);
                }
                Op::Split(at) => extents.split(at),
                Op::Answer(..) | Op::Truncate(_) => {}
            }
            charged -= extents.take_freed();
            let mut held = vec![None; SPACE];
            for (at, data) in extents.covering(0, SPACE as u64) {
                for (index, byte) in data.iter().enumerate() {
                    prop_assert_eq!(held[at as usize + index].replace(*byte), None);
                }
            }
            prop_assert_eq!(&held, &newest);
            let bytes = held.iter().flatten().count() as u64;
            prop_assert_eq!(extents.unsent_bytes() + extents.unstable_bytes(), bytes);
            prop_assert!(charged >= bytes as isize);
        }
        for job in jobs {
            extents.answered(job.offset, job.id, Outcome::Refused);
        }
        extents.truncate(0);
        charged -= extents.take_freed();
        prop_assert_eq!(charged, 0);
        prop_assert!(extents.is_empty() && extents.pending.is_empty() && extents.chunks.is_empty());
    }
}
