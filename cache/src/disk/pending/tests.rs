use super::*;
use crate::journal::{NameEvent, NameRecord};
use gridvfs_vfs::{DeviceNumber, FileKind, Time};

fn handle(number: u8) -> FileHandle {
    FileHandle::new(&[number; 8]).expect("short")
}

fn at(name: &str) -> At {
    At { dir: handle(0), name: name.as_bytes().into() }
}

fn create(name: &str, file: FileHandle) -> NameChange {
    let attr = Attr {
        kind: FileKind::Regular,
        mode: 0o644,
        links: 1,
        uid: 0,
        gid: 0,
        size: 0,
        used: 0,
        device: DeviceNumber::default(),
        fsid: 1,
        fileid: 1,
        atime: Time::default(),
        mtime: Time::default(),
        ctime: Time::default(),
    };
    NameChange::Create { at: at(name), file, attr }
}

fn remove(name: &str, file: FileHandle) -> NameChange {
    NameChange::Remove { at: at(name), file, last: true }
}

fn rename(from: &str, to: &str, file: FileHandle, replaced: Option<FileHandle>) -> NameChange {
    let replaced = replaced.map(|file| (file, true));
    NameChange::Rename { from: at(from), to: at(to), file, replaced }
}

/// A queue, and the log that a process with it writes.
#[derive(Default)]
struct World {
    queue: Queue,
    log: Vec<NameEvent>,
    next: u64,
}

impl World {
    fn add(&mut self, change: NameChange) -> u64 {
        self.next += 1;
        let op = NameOp { uid: 0, gid: 0, change };
        self.log.push(NameEvent::Record(self.next, NameRecord::Op(Box::new(op.clone()))));
        self.queue.add(self.next, op, None, Instant::now());
        self.next
    }

    fn start(&mut self) -> Vec<u64> {
        let now = Instant::now();
        let (taken, _) = self.queue.take_ready(64, now, |_| Some(now));
        self.log.push(NameEvent::Record(0, NameRecord::Started(taken.clone())));
        self.queue.started(&taken);
        taken
    }

    fn done(&mut self, number: u64) {
        self.log.push(NameEvent::Record(0, NameRecord::Done(number)));
        self.queue.done(number);
    }

    /// What is pending, here and as the next process finds it.
    fn pending(&self) -> Vec<NameChange> {
        let all = |queue: &Queue| -> Vec<_> {
            queue.ops.values().map(|pending| (pending.op.change.clone(), pending.asked)).collect()
        };
        let (again, hole) = Queue::replay(self.log.clone(), Instant::now());
        assert!(!hole);
        assert_eq!(all(&self.queue), all(&again), "replay comes to the same");
        all(&again).into_iter().map(|(change, _)| change).collect()
    }
}

#[test]
fn what_was_never_asked_for_is_folded() {
    let (a, b, old) = (new_handle(), new_handle(), handle(9));
    let mut world = World::default();
    world.add(create("x", a));
    world.add(rename("x", "y", a, None));
    assert_eq!(world.pending(), [create("y", a)]);
    world.add(create("x", b));
    world.add(rename("x", "y", b, Some(a)));
    assert_eq!(world.pending(), [create("y", b)], "one that is as new is replaced");
    world.add(rename("y", "z", b, Some(old)));
    assert_eq!(world.pending(), [create("y", b), rename("y", "z", b, Some(old))]);
    world.add(remove("z", b));
    assert_eq!(world.pending().len(), 3, "the old one has to go");
    assert_eq!(world.queue.child(&at("z")), Some(None));
    assert!(world.queue.is_gone(&old) && world.queue.is_gone(&b));
    let mut world = World::default();
    world.add(create("x", a));
    world.add(remove("x", a));
    assert_eq!(world.pending(), []);
    assert_eq!(world.queue.child(&at("x")), None, "the server is right about it");
}

#[test]
fn what_was_asked_for_is_made_in_order() {
    let (a, b) = (new_handle(), new_handle());
    let mut world = World::default();
    let first = world.add(create("x", a));
    let other = world.add(create("y", b));
    assert_eq!(world.start(), [first, other], "at the same time");
    let second = world.add(rename("x", "z", a, None));
    let third = world.add(remove("z", a));
    assert_eq!(world.pending().len(), 4);
    assert_eq!(world.start(), []);
    assert_eq!(
        world.queue.closure(vec![third]).into_iter().collect::<Vec<_>>(),
        [first, second, third]
    );
    world.log.push(NameEvent::Bound(a, handle(1), first));
    world.queue.bind(a, handle(1));
    world.queue.done(first);
    assert_eq!(world.start(), [second]);
    world.done(second);
    assert_eq!(world.start(), [third]);
    world.done(third);
    assert_eq!(world.pending(), [create("y", b)]);
    assert_eq!(world.queue.server(&a), None, "its handle is forgotten with it");
}

#[test]
fn a_copy_counts_as_a_whole_or_not_at_all() {
    let (a, b) = (new_handle(), new_handle());
    let mut world = World::default();
    world.add(create("x", a));
    world.start();
    world.add(rename("x", "y", a, Some(handle(3))));
    let copy: Vec<_> =
        world.queue.copy().into_iter().map(|record| NameEvent::Record(0, record)).collect();
    let all = |events: Vec<NameEvent>| {
        let (queue, _) = Queue::replay(events, Instant::now());
        queue.ops.into_iter().map(|(number, it)| (number, it.op, it.asked)).collect::<Vec<_>>()
    };
    let wanted = all(world.log.clone());
    assert_eq!(all(copy.clone()), wanted, "the copy alone");
    for cut in 0..copy.len() {
        let mut log = world.log.clone();
        log.extend_from_slice(&copy[..cut]);
        assert_eq!(all(log), wanted, "a copy of which {cut} records are there");
    }
    // Behind a hole nothing is believed, but a copy that was made later.
    let mut log = world.log.clone();
    log.push(NameEvent::Hole);
    let op = NameOp { uid: 0, gid: 0, change: create("z", b) };
    log.push(NameEvent::Record(9, NameRecord::Op(Box::new(op.clone()))));
    assert_eq!(all(log.clone()), wanted);
    log.extend(copy);
    log.push(NameEvent::Record(10, NameRecord::Op(Box::new(op))));
    assert_eq!(all(log).len(), wanted.len() + 1);
}
