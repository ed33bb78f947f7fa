//! What is told to whom, over a real directory.

use std::path::Path;
use std::time::Duration;

use gridvfs_vfs::SetAttr;

use super::*;
use crate::local_dir::{LocalDir, LocalDirOptions};

const ONE: ClientId = (1, 1);
const TWO: ClientId = (1, 2);

struct World {
    folder: tempfile::TempDir,
    hub: Arc<Hub>,
    vfs: Arc<dyn Vfs>,
    caller: Caller,
}

impl World {
    fn new(exclusive: bool) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let options = LocalDirOptions::default();
        let vfs: Arc<dyn Vfs> = Arc::new(LocalDir::open(folder.path(), options).expect("opens"));
        let hub = Hub::new(vfs.clone(), None, exclusive);
        Self { folder, hub, vfs, caller: crate::backend::own_identity() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn ask(&self, id: ClientId, period: u64, heard: u64, hold_ms: u32) -> Changes {
        let args = ChangesArgs { root: self.vfs.root(), period, heard, hold_ms };
        let (caller, vfs) = (self.caller.clone(), self.vfs.clone());
        let answer = self.hub.answer(id, caller, vfs, false, &args).await;
        answer.expect("nobody else asks").expect("an answer")
    }

    /// Asks until something is told.
    async fn hear(&self, id: ClientId, last: &mut Changes) -> Vec<Change> {
        for _ in 0..100 {
            *last = self.ask(id, last.period, last.number, 100).await;
            if !last.told.0.is_empty() {
                return std::mem::take(&mut last.told.0);
            }
        }
        panic!("nothing is told");
    }

    fn as_client(&self, id: ClientId) -> Arc<dyn Vfs> {
        attentive(Some(&self.hub), &self.vfs, id)
    }

    async fn find(&self, id: ClientId, name: &str) -> FileHandle {
        let vfs = self.as_client(id);
        let entry = vfs.lookup(&self.caller, &vfs.root(), name.as_bytes()).await.expect("there");
        entry.handle
    }
}

/// By another process: what this one does, the hub does not hear of from the kernel.
fn write(path: impl AsRef<Path>, text: &str) {
    let mut shell = std::process::Command::new("sh");
    let script = ["-c", "printf %s \"$1\" >\"$2\"", "sh", text];
    assert!(shell.args(script).arg(path.as_ref()).status().expect("runs").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_of_what_it_was_given_and_of_nothing_else() {
    let world = World::new(false);
    write(world.path("mine"), "a");
    write(world.path("others"), "a");
    let mut one = world.ask(ONE, 0, 0, 0).await;
    let mut two = world.ask(TWO, 0, 0, 0).await;
    assert_eq!((one.number, one.told.0.len()), (1, 0));
    // Listening has begun: what was given before is not covered.
    one = world.ask(ONE, one.period, one.number, 0).await;
    let mine = world.find(ONE, "mine").await;
    world.find(TWO, "others").await;
    write(world.path("mine"), "changed");
    let told = world.hear(ONE, &mut one).await;
    assert!(
        told.iter().any(|change| matches!(change, Change::File(file, Some(attr))
            if *file == mine && attr.size == 7)),
        "{told:?}"
    );
    two = world.ask(TWO, two.period, two.number, 50).await;
    assert!(two.told.0.iter().all(|change| *change.subject() != mine), "{:?}", two.told);
    // The directory was given to both by their looking into it.
    write(world.path("new"), "b");
    let told = world.hear(TWO, &mut two).await;
    let new =
        |change: &Change| matches!(change, Change::Name(_, name, Leads::To(..)) if name == "new");
    assert!(told.iter().any(new), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_told_again() {
    let world = World::new(false);
    write(world.path("file"), "a");
    let begun = world.ask(ONE, 0, 0, 0).await;
    let mut last = world.ask(ONE, begun.period, begun.number, 0).await;
    let file = world.find(ONE, "file").await;
    write(world.path("file"), "changed");
    let before = last.number;
    world.hear(ONE, &mut last).await;
    let again = world.ask(ONE, last.period, before, 1000).await;
    let is_file = |change: &Change| matches!(change, Change::File(of, Some(_)) if *of == file);
    assert!(again.told.0.iter().any(is_file), "{:?}", again.told);
    let quiet = world.ask(ONE, again.period, again.number, 50).await;
    assert!(!quiet.told.0.iter().any(is_file), "once it has arrived, no more");
    // One of another period is told to begin anew.
    let other = world.ask(ONE, begun.period ^ 2, 9, 1000).await;
    assert!(other.period != begun.period && other.number == 1);
}

/// Sets a file's mode as one client, and returns what each then hears of the file.
async fn modes_heard(world: &World) -> [Vec<Change>; 2] {
    write(world.path("file"), "a");
    let mut last = [world.ask(ONE, 0, 0, 0).await, world.ask(TWO, 0, 0, 0).await];
    let file = world.find(ONE, "file").await;
    world.find(TWO, "file").await;
    let changes = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let changed = world.as_client(ONE).setattr(&world.caller, &file, &changes, None).await;
    changed.expect("changes");
    let mut heard = [Vec::new(), Vec::new()];
    for _ in 0..3 {
        for (at, id) in [ONE, TWO].into_iter().enumerate() {
            last[at] = world.ask(id, last[at].period, last[at].number, 30).await;
            let told = last[at].told.0.iter().filter(|change| *change.subject() == file);
            heard[at].extend(told.cloned());
        }
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn own_changes_do_not_come_back_and_others_hear_of_them() {
    for exclusive in [false, true] {
        let [own, others] = modes_heard(&World::new(exclusive)).await;
        assert_eq!(own, [], "neither by the call, nor by the kernel");
        let is_mode = |change: &Change| match change {
            Change::Attributes(_, Some(attr)) => attr.mode == 0o600,
            _ => false,
        };
        assert!(!others.is_empty() && others.iter().all(is_mode), "{others:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_exports_share_files_nothing_is_believed() {
    let world = World::new(false);
    let one = world.ask(ONE, 0, 0, 0).await;
    assert_eq!(one.reason.0, "");
    std::fs::create_dir(world.path("dir")).expect("makes");
    let other = LocalDir::open(world.path("dir"), LocalDirOptions::default()).expect("opens");
    let one = world.ask(ONE, one.period, one.number, 1000).await;
    assert!(
        one.reason.0.contains("two exports"),
        "{}: the kernel tells only the process",
        one.reason.0
    );
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_leaves_the_same_attributes_is_told() {
    let world = World::new(false);
    write(world.path("file"), "a");
    let begun = world.ask(ONE, 0, 0, 0).await;
    let mut last = world.ask(ONE, begun.period, begun.number, 0).await;
    let file = world.find(ONE, "file").await;
    for _ in 0..3 {
        let mut shell = std::process::Command::new("sh");
        let script = "printf b >file; touch -d @1 file";
        shell.args(["-c", script]).current_dir(world.folder.path());
        assert!(shell.status().expect("runs").success());
        let is_data = |change: &Change| matches!(change, Change::File(of, Some(_)) if *of == file);
        while !world.hear(ONE, &mut last).await.iter().any(is_data) {}
        last = world.ask(ONE, last.period, last.number, 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_by_a_name_that_is_gone_is_told() {
    let world = World::new(false);
    let shell = |script: &str| {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", script])
            .current_dir(world.folder.path())
            .stdin(std::process::Stdio::piped());
        shell.spawn().expect("runs")
    };
    write(world.path("old"), "a");
    let begun = world.ask(ONE, 0, 0, 0).await;
    let mut last = world.ask(ONE, begun.period, begun.number, 0).await;
    // A program holds the file open by its first name, which goes; then it writes.
    let mut program =
        shell("exec 3>>old; ln old new; rm old; : >ready; read go || true; echo more >&3");
    while !world.path("ready").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let file = world.find(ONE, "new").await;
    last = world.ask(ONE, last.period, last.number, 100).await;
    drop(program.stdin.take());
    assert!(program.wait().expect("ends").success());
    let is_told = |change: &Change| matches!(change, Change::File(of, _) if *of == file);
    while !world.hear(ONE, &mut last).await.iter().any(is_told) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_told_as_all() {
    let world = World::new(false);
    let mut one = world.ask(ONE, 0, 0, 0).await;
    one = world.ask(ONE, one.period, one.number, 0).await;
    let client = world.hub.client(ONE).expect("known");
    let handle = |number: u64| FileHandle::new(&number.to_be_bytes()).expect("short");
    for number in 0..=PENDING_MAX as u64 {
        world.hub.give(&client, &handle(number), world.hub.now());
        world.hub.tell(&Item::Uncovered(handle(number)), None);
    }
    let answer = world.ask(ONE, one.period, one.number, 1000).await;
    assert!(answer.lost && answer.told.0.is_empty());
    let answer = world.ask(ONE, answer.period, answer.number, 0).await;
    assert!(!answer.lost, "once");
    world.hub.tell(&Item::Uncovered(handle(1)), None);
    let answer = world.ask(ONE, answer.period, answer.number, 20).await;
    assert!(answer.told.0.is_empty(), "it has to be given anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_while_an_answer_is_made_is_told() {
    let world = World::new(false);
    let mut one = world.ask(ONE, 0, 0, 0).await;
    one = world.ask(ONE, one.period, one.number, 0).await;
    let client = world.hub.client(ONE).expect("known");
    let file = FileHandle::new(&[7]).expect("short");
    // The attributes are read, the file changes, and only then is it noted who has it.
    let since = world.hub.now();
    world.hub.tell(&Item::Uncovered(file), None);
    world.hub.give(&client, &file, since);
    let told = world.hear(ONE, &mut one).await;
    assert_eq!(told, [Change::Uncovered(file)]);
    // So is one of which nobody remembers whether it has.
    let since = world.hub.now();
    let other = FileHandle::new(&[8]).expect("short");
    (0..RECENT_MAX + 9).for_each(|_| world.hub.tell(&Item::Names(file), None));
    world.hub.give(&client, &other, since);
    let told = world.hear(ONE, &mut one).await;
    assert!(told.contains(&Change::Names(other)), "{told:?}");
    // What it has changed itself meanwhile is not told.
    let two = world.ask(TWO, 0, 0, 0).await;
    assert_eq!(two.number, 1);
    let since = world.hub.now();
    world.hub.tell(&Item::Uncovered(file), Some(&client));
    world.hub.give(&client, &file, since);
    one = world.ask(ONE, one.period, one.number, 50).await;
    assert!(one.told.0.is_empty(), "{:?}", one.told);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_question_ends_the_first() {
    let world = World::new(false);
    let one = world.ask(ONE, 0, 0, 0).await;
    let one = world.ask(ONE, one.period, one.number, 0).await;
    let args = ChangesArgs {
        root: world.vfs.root(),
        period: one.period,
        heard: one.number,
        hold_ms: 9000,
    };
    let (hub, caller, vfs) = (world.hub.clone(), world.caller.clone(), world.vfs.clone());
    let first = tokio::spawn(async move { hub.answer(ONE, caller, vfs, false, &args).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.ask(ONE, one.period, one.number, 10).await;
    assert_eq!(first.await.expect("ends"), None, "nobody waits for it any more");
}
