//! Random work, kills and power losses: what was synced is there, what was dropped stays away.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::owner::{FILES, Owner, SPACE};
use super::*;

#[derive(Clone, Debug)]
enum Op {
    Write(u8, usize, usize),
    Times(u8, i64),
    Fsync(u8),
    Sync,
    Send(u8, u64, u64),
    Cut(u8, usize),
    Remove(u8),
    CarryForward,
    Reclaim,
    MakeRoom,
    Kill(Trouble),
    PowerLoss(u64, Trouble),
}

/// What was going on.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Nothing,
    Appending(usize),
    Sending(u8),
    /// Whether the server had done it.
    Cutting(u8, usize, bool),
    Removing(u8, bool),
    Reclaiming(usize),
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        Just(Trouble::Nothing),
        (1..400usize).prop_map(Trouble::Appending),
        (0..FILES).prop_map(Trouble::Sending),
        (0..FILES, 0..SPACE, any::<bool>()).prop_map(|(f, size, b)| Trouble::Cutting(f, size, b)),
        (0..FILES, any::<bool>()).prop_map(|(f, b)| Trouble::Removing(f, b)),
        (0..4usize).prop_map(Trouble::Reclaiming),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let file = || 0..FILES;
    prop_oneof![
        20 => (file(), 0..SPACE - 1, 1..6000usize)
            .prop_map(|(f, start, length)| Op::Write(f, start, length.min(SPACE - start))),
        1 => (file(), 0..3i64).prop_map(|(f, seconds)| Op::Times(f, seconds)),
        4 => file().prop_map(Op::Fsync),
        1 => Just(Op::Sync),
        8 => (file(), 0..SPACE as u64, 0..9000u64)
            .prop_map(|(f, from, max)| Op::Send(f, from, max)),
        3 => file().prop_map(|f| Op::Send(f, 0, u64::MAX)),
        1 => (file(), 0..SPACE).prop_map(|(f, size)| Op::Cut(f, size)),
        1 => file().prop_map(Op::Remove),
        3 => Just(Op::CarryForward),
        4 => Just(Op::Reclaim),
        4 => Just(Op::MakeRoom),
        2 => trouble().prop_map(Op::Kill),
        3 => (any::<u64>(), trouble()).prop_map(|(seed, trouble)| Op::PowerLoss(seed, trouble)),
    ]
}

fn begin(owner: &mut Owner, trouble: Trouble) {
    match trouble {
        Trouble::Nothing => {}
        Trouble::Appending(bytes) => {
            // A whole record's first bytes, as they are when the process dies in the write.
            let Some(last) = owner.journal.as_ref().unwrap().segments().last().copied() else {
                return;
            };
            let path = segment::path_of(&owner.dir, last.number);
            let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
            let mut half = vec![0; bytes.min(last.bytes as usize - 64)];
            file.read_exact_at(&mut half, 64).unwrap();
            file.write_all_at(&half, last.bytes).unwrap();
        }
        Trouble::Sending(file) => owner.send(file, 0, u64::MAX, true),
        Trouble::Cutting(file, size, done) => owner.cut(file, size, Some(done)),
        Trouble::Removing(file, done) => owner.remove(file, Some(done)),
        Trouble::Reclaiming(undone) => owner.reclaim(undone),
    }
}

fn step(owner: &mut Owner, op: Op, value: u8) {
    match op {
        Op::Write(file, start, length) => owner.write(file, start, length, value),
        Op::Times(file, seconds) => owner.times(file, seconds),
        Op::Fsync(file) => owner.fsync(file),
        Op::Sync => owner.sync(),
        Op::Send(file, from, max) => owner.send(file, from, max, false),
        Op::Cut(file, size) => owner.cut(file, size, None),
        Op::Remove(file) => owner.remove(file, None),
        Op::CarryForward => owner.carry_forward(),
        Op::Reclaim => owner.reclaim(0),
        Op::MakeRoom => owner.make_room(),
        Op::Kill(trouble) => {
            begin(owner, trouble);
            owner.restart(!matches!(trouble, Trouble::Cutting(..) | Trouble::Removing(..)));
        }
        Op::PowerLoss(seed, trouble) => {
            begin(owner, trouble);
            let mut random = seed | 1;
            owner.power_loss(&mut |_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % 4 < seed % 5
            });
        }
    }
    owner.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_is_lost_and_nothing_comes_back(ops in prop::collection::vec(op(), 1..80)) {
        let dir = tempdir();
        let mut owner = Owner::new(dir.path());
        for (number, op) in ops.into_iter().enumerate() {
            step(&mut owner, op, (number % 255) as u8 + 1);
        }
        // At last, all of it reaches the server and the log shrinks to what is appended to.
        for file in 0..FILES {
            owner.times(file, 0);
            while !owner.files[usize::from(file)].dirty.is_empty() {
                owner.send(file, 0, u64::MAX, false);
            }
            let held = &owner.files[usize::from(file)];
            prop_assert!(held.server == held.local);
        }
        owner.reclaim(0);
        prop_assert!(owner.journal.as_ref().unwrap().used_bytes() < 2 * (16 << 10));
        owner.restart(true);
    }
}
