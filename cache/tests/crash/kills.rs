//! Kills at every named point of the write path, and at random times: what `write` has acknowledged
//! is there afterwards, and reaches the server; a step that was under way was done or was not.
//!
//! GRIDVFS_CRASH_KILLS=N: at least N kills instead of 200. GRIDVFS_CRASH_SEED=N: one world only.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gridvfs_cache::DiskCache;
use gridvfs_cache::crash::{self, Point};

use super::program::*;
use super::world::*;

/// How often the process of one world is killed before all is looked at.
const KILLS_PER_WORLD: u64 = 6;

/// Up to so many times the kills that are wanted are made until every point has had one.
const WANTED_TIMES_MAX: u64 = 4;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// When a process is to die.
#[derive(Clone, Copy, Debug)]
enum Death {
    At(Point, u64),
    After(Duration),
}

impl Death {
    fn of(seed: u64, turn: u64) -> Self {
        let mut dice = Dice::new(seed.wrapping_mul(31) + turn);
        if dice.below(3) == 0 {
            return Self::After(Duration::from_millis(20 + dice.below(500)));
        }
        // All points in turn, whatever the dice say.
        let index = (seed.wrapping_mul(KILLS_PER_WORLD) + turn) as usize % Point::ALL.len();
        let name = Point::ALL[index].name();
        let often = name.starts_with("JOURNAL_") && !name.ends_with("_DELETE");
        Self::At(Point::ALL[index], 1 + dice.below(if often { 30 } else { 5 }))
    }
}

/// Runs in the child: not a test of its own.
#[test]
#[ignore = "a part of the other tests, which run it in processes of its own"]
fn child() {
    let Ok(folder) = std::env::var("GRIDVFS_CRASH_FOLDER") else { return };
    let folder = PathBuf::from(folder);
    let text = std::fs::read_to_string(folder.join("orders")).expect("orders");
    let mut lines = text.lines();
    let mut numbers = || -> Option<Vec<u64>> {
        Some(lines.next()?.split_whitespace().map(|word| word.parse().expect("number")).collect())
    };
    let [seed, first_step] = numbers().expect("a line")[..] else { panic!("{text}") };
    let histories = std::iter::from_fn(numbers).collect();
    if let Ok(point) = std::env::var("GRIDVFS_CRASH_POINT") {
        let (name, count) = point.split_once(':').expect("NAME:COUNT");
        crash::arm(name, count.parse().expect("number")).expect("armed");
    }
    let mut log = File::options().append(true).open(folder.join("log")).expect("log");
    let world = World::at(&folder, settings_of(seed));
    run(&world, &Orders { seed, histories, first_step }, &mut log);
}

/// Runs the child in a folder; `true` if it was killed.
fn run_child(folder: &Path, death: Death) -> Result<bool, String> {
    std::fs::write(folder.join("log"), "").map_err(|error| error.to_string())?;
    let errors = File::create(folder.join("errors")).map_err(|error| error.to_string())?;
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--exact", "kills::child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env("GRIDVFS_CRASH_FOLDER", folder).env_remove("GRIDVFS_CRASH_POINT");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
    if let Death::At(point, count) = death {
        command.env("GRIDVFS_CRASH_POINT", format!("{}:{count}", point.name()));
    }
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let limit = match death {
        Death::After(time) => time,
        Death::At(..) => Duration::from_secs(30),
    };
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            break status;
        }
        if begun.elapsed() >= limit {
            let _ = child.kill();
            let status = child.wait().map_err(|error| error.to_string())?;
            if matches!(death, Death::At(..)) {
                let errors = std::fs::read_to_string(folder.join("errors")).unwrap_or_default();
                return Err(format!("it hangs\n{errors}"));
            }
            break status;
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    match (status.signal(), status.success()) {
        (Some(9), _) => Ok(true),
        (None, true) => Ok(false),
        _ => {
            let errors = std::fs::read_to_string(folder.join("errors")).unwrap_or_default();
            Err(format!("{status}\n{errors}"))
        }
    }
}

/// Takes what the child has told into the orders for the next.
fn follow(folder: &Path, orders: &mut Orders) {
    let log = std::fs::read_to_string(folder.join("log")).expect("log");
    let mut under_way = None;
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let (what, number) = line.trim_end().split_once(' ').expect("two words");
        let number: u64 = number.parse().expect("number");
        match what {
            "chosen" => orders.histories = vec![orders.histories.swap_remove(number as usize)],
            "begin" => {
                // Whoever does a step without a choice had none.
                orders.histories.truncate(1);
                under_way = Some(number);
                orders.first_step = number + 1;
            }
            _ => orders.histories[0].extend(under_way.take()),
        }
    }
    if let Some(number) = under_way {
        let mut other = orders.histories[0].clone();
        other.push(number);
        orders.histories.push(other);
    }
}

/// One world, from its first process to the last look at it. Counts deaths by point.
fn live(seed: u64, deaths: &Mutex<BTreeMap<&'static str, u64>>) -> Result<(), String> {
    let folder = World::folder();
    let mut orders = Orders { seed, histories: vec![Vec::new()], first_step: 0 };
    for turn in 0..KILLS_PER_WORLD {
        let mut text = format!("{seed} {}\n", orders.first_step);
        for history in &orders.histories {
            let words: Vec<_> = history.iter().map(u64::to_string).collect();
            text += &(words.join(" ") + "\n");
        }
        std::fs::write(folder.path().join("orders"), text).map_err(|error| error.to_string())?;
        let death = Death::of(seed, turn);
        let killed = run_child(folder.path(), death).map_err(|error| {
            let told = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            let last: Vec<_> = told.lines().rev().take(2).collect();
            let step = orders.first_step + told.matches("begin").count() as u64;
            let steps = describe(seed, step.saturating_sub(12)..step);
            format!("turn {turn}, {death:?}, {last:?}: {steps}\n{error}")
        })?;
        follow(folder.path(), &mut orders);
        if killed {
            let name = match death {
                Death::At(point, _) => point.name(),
                Death::After(_) => "at random",
            };
            *deaths.lock().expect("no panic").entry(name).or_default() += 1;
        }
    }
    look(folder.path(), &orders)
}

/// The last look: through the cache, and at the server after all has been written back.
fn look(folder: &Path, orders: &Orders) -> Result<(), String> {
    let seed = orders.seed;
    let check = || {
        let candidates: Vec<_> = orders.histories.iter().map(|steps| after(seed, steps)).collect();
        let world = World::at(folder, settings_of(seed));
        let session = world.open();
        let chosen = choose(&read_all(&session), &candidates);
        session.wait(session.cache.write_back()).expect("written back");
        assert_eq!(session.cache.conflicts(), []);
        let export = folder.join("export");
        let there = difference(&read_server(&export), &candidates[chosen]);
        assert_eq!(there, None, "at the server");
        let names = std::fs::read_dir(&export).expect("listed").count();
        assert_eq!(names, candidates[chosen].len(), "nothing else is there");
        assert_eq!(difference(&read_all(&session), &candidates[chosen]), None, "written back");
        let report = session.cache.verify(&mut |_, _| {});
        assert_eq!(report.bad_count, 0);
        session.close().expect("ended");
        let unsent = DiskCache::unsent_in(&folder.join("cache")).expect("journal");
        assert_eq!(unsent.bytes, 0);
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| text.to_string()));
        let steps = describe(seed, orders.first_step.saturating_sub(12)..orders.first_step);
        format!("at last: {}\n{steps}\n{:?}", text.unwrap_or_default(), orders.histories)
    })
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let wanted = number("GRIDVFS_CRASH_KILLS").unwrap_or(200);
    let only = number("GRIDVFS_CRASH_SEED");
    let seeds = only.map_or(1..u64::MAX, |seed| seed..seed + 1);
    let next = AtomicU64::new(seeds.start);
    let deaths = Mutex::new(BTreeMap::new());
    let killed = || deaths.lock().expect("no panic").values().sum::<u64>();
    let failures = Mutex::new(Vec::new());
    let begun = Instant::now();
    let missing = || -> Vec<&str> {
        let deaths = deaths.lock().expect("no panic");
        Point::ALL
            .iter()
            .map(|point| point.name())
            .filter(|name| !deaths.contains_key(name))
            .collect()
    };
    // A point that few come by may need more than its turns.
    let enough = || match killed() {
        killed if killed < wanted => false,
        killed => killed >= WANTED_TIMES_MAX * wanted || missing().is_empty(),
    };
    let worker = || {
        while !enough() && failures.lock().expect("no panic").is_empty() {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds.end {
                return;
            }
            if let Err(error) = live(seed, &deaths) {
                let text = format!("GRIDVFS_CRASH_SEED={seed}: {error}");
                failures.lock().expect("no panic").push(text);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..3).for_each(|_| drop(scope.spawn(worker)));
    });
    println!("{} kills in {:.0?}: {deaths:?}", killed(), begun.elapsed());
    let failures = failures.into_inner().expect("no panic");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    if only.is_none() {
        let missing = missing();
        assert!(missing.is_empty(), "nobody died at {missing:?}");
    }
}
