//! Reading: from what is held, from what was fetched, else from the server.
//!
//! A read is planned under the file's lock: held data is taken as it is now, everything else
//! becomes units, found or new. If all of them have their data, the answer is made at once, without
//! ever giving the thread away. Otherwise the read waits for them; what is written meanwhile may or
//! may not be in its answer, what was written before is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::{Caller, FileHandle, ReadData, Result, Status};
use tokio::time::Instant;

use super::fetch::joined;
use super::shared::Shared;
use crate::budget::note_peak;
use crate::counters::add;
use crate::file::{File, Reading, State};
use crate::lru::Victims;
use crate::unit::{Fetched, Unit};

/// The largest answer; whoever asks for more asks again.
const READ_MAX: u64 = 2 * 1024 * 1024;
/// How often a read is planned anew: because another reader's fetch failed, or because an end of
/// file turned out to be older than our own writes.
const ATTEMPTS_MAX: u32 = 16;
/// What a READ outside of a stream fetches of a file is rounded to this: a page.
const GRAIN_MIN: u64 = 4096;
/// How old unread data must be for another stream to take its memory.
const UNREAD_AGE: Duration = Duration::from_millis(500);

/// A piece of the answer.
enum Part {
    Held(Bytes),
    Unit { from: u64, to: u64, unit: Arc<Unit>, mine: bool, ready: Option<Fetched> },
}

struct Plan {
    parts: Vec<Part>,
    fresh: Vec<Arc<Unit>>,
    ahead: Vec<Arc<Unit>>,
    touched: Vec<Arc<Unit>>,
    dropped: Vec<Arc<Unit>>,
    held_end: u64,
    starved: bool,
}

impl Shared {
    /// Reads for a program, if `noted`: its reads are looked at for streams, and what lies around
    /// them is fetched beside them.
    pub async fn read(
        self: &Arc<Self>,
        caller: &Caller,
        handle: &FileHandle,
        (offset, count): (u64, u32),
        noted: bool,
    ) -> Result<ReadData> {
        let end = offset.checked_add(u64::from(count).min(READ_MAX)).ok_or(Status::INVAL)?;
        let file = self.file(handle);
        let caller = Arc::new(caller.clone());
        for attempt in 0..ATTEMPTS_MAX {
            let mut plan = {
                let mut state = file.state.lock();
                self.plan(&mut state, &caller, (offset, end), noted && attempt == 0)
            };
            self.carry_out(&file, &mut plan);
            let waits = |part: &Part| matches!(part, Part::Unit { ready: None, .. });
            if attempt == 0 {
                let missed = plan.parts.iter().any(waits);
                add(if missed { &self.counters.misses } else { &self.counters.hits }, 1);
            }
            if self.wait(&mut plan).await? && !self.is_stale(&file, &plan) {
                return Ok(assemble(plan, offset, end));
            }
        }
        Err(Status::JUKEBOX.into())
    }

    fn plan(
        &self,
        state: &mut State,
        caller: &Arc<Caller>,
        (offset, end): (u64, u64),
        noted: bool,
    ) -> Plan {
        state.forgotten = false;
        let (extents, reading) = (&state.writing.extents, &mut state.reading);
        let dropped = expire(reading, offset, end, self.options.clean_age_max);
        let held = extents.covering(offset, end);
        let mut gaps = Vec::new();
        let mut at = offset;
        for (start, data) in &held {
            if *start > at {
                gaps.push((at, *start));
            }
            at = start + data.len() as u64;
        }
        if at < end {
            gaps.push((at, end));
        }
        let unit = self.options.unit_bytes as u64;
        let missed = gaps.iter().any(|&(from, to)| !reading.covers(from, to));
        let size = reading.known.map_or(end, |known| known.size);
        let advice = if noted && !gaps.is_empty() {
            let window = self.options.window_max_bytes as u64;
            reading.streams.observe(offset, end - offset, size, missed, unit, window)
        } else {
            Default::default()
        };
        // What nobody waits for comes in READs of its own: a large answer to a random reader takes
        // half a round trip more where the server's TCP paces it (BBR).
        let grain = if advice.stream.is_some() { unit } else { GRAIN_MIN };
        let clock = self.clock();
        let mut fresh = Vec::new();
        let mut add = |reading: &mut Reading, (start, length)| {
            let new = Arc::new(Unit::new(start, length, caller.clone(), false, clock));
            reading.units.insert(start, new.clone());
            fresh.push(new);
        };
        for &(from, to) in &gaps {
            for part in uncovered(reading, from, to, grain, unit) {
                add(reading, part);
            }
        }
        if noted && advice.stream.is_none() {
            let around = self.options.around_bytes as u64;
            let size = reading.known.map_or(u64::MAX, |known| known.size);
            for &(from, to) in &gaps {
                let end = to.div_ceil(around).saturating_mul(around).min(size.max(to));
                for part in free(reading, from / around * around, end, unit) {
                    add(reading, part);
                }
            }
        }
        let mut plan = Plan {
            parts: Vec::new(),
            fresh,
            ahead: Vec::new(),
            touched: Vec::new(),
            dropped,
            held_end: extents.end(),
            starved: false,
        };
        let mut held = held.into_iter().peekable();
        for (from, to) in gaps {
            while let Some((_, data)) = held.next_if(|(start, _)| *start < from) {
                plan.parts.push(Part::Held(data));
            }
            plan.add_units(reading, from, to);
        }
        plan.parts.extend(held.map(|(_, data)| Part::Held(data)));
        for (from, to) in advice.ahead {
            let grain = match advice.stream {
                Some(_) => unit,
                None => self.options.around_bytes as u64,
            };
            for (start, length) in uncovered(reading, from, to, grain, unit) {
                if extents.touches(start, start + length as u64) {
                    continue;
                }
                let Some(permit) = self.reads.try_take(length) else {
                    plan.starved = true;
                    if let Some(index) = advice.stream {
                        reading.streams.stopped(index, start);
                    }
                    return plan;
                };
                let new = Arc::new(Unit::new(start, length, caller.clone(), true, clock));
                new.charge(permit);
                reading.units.insert(start, new.clone());
                plan.ahead.push(new);
            }
        }
        plan
    }

    /// Does what the plan asks for outside of the file's lock.
    fn carry_out(self: &Arc<Self>, file: &Arc<File>, plan: &mut Plan) {
        self.dispose(std::mem::take(&mut plan.dropped));
        self.launch(file, std::mem::take(&mut plan.fresh));
        for unit in plan.ahead.drain(..) {
            add(&self.counters.prefetched_bytes, unit.length as u64);
            self.start(file, unit);
        }
        for unit in plan.touched.drain(..) {
            self.lru.note(file, &unit);
        }
        if plan.starved {
            let before = Instant::now().checked_sub(UNREAD_AGE);
            let victims = before.map_or(Victims::Touched, Victims::AskedBefore);
            self.evict(victims, 2 * self.options.unit_bytes);
        }
        note_peak(&self.counters.read_peak_bytes, self.reads.used());
        self.trim();
    }

    /// Waits for the plan's units. Returns false if another reader's fetch failed: a fetch of our
    /// own, with our own caller, may do better.
    async fn wait(&self, plan: &mut Plan) -> Result<bool> {
        for part in &mut plan.parts {
            let Part::Unit { unit, mine, ready: ready @ None, .. } = part else { continue };
            if !*mine {
                add(&self.counters.joined, 1);
            }
            match unit.wait().await {
                Ok(fetched) => *ready = Some(fetched),
                Err(error) if *mine => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Says whether the plan rests on an end of file from before our own last writes, and drops it.
    fn is_stale(&self, file: &File, plan: &Plan) -> bool {
        let mut stale = false;
        for part in &plan.parts {
            let Part::Unit { to, unit, ready: Some(fetched), .. } = part else { continue };
            let end = unit.start + fetched.data.len() as u64;
            if end >= *to {
                continue;
            }
            let mut state = file.state.lock();
            let reading = &mut state.reading;
            if reading.released_at > unit.asked_at && reading.own_size > end {
                stale = true;
                if reading.units.get(&unit.start).is_some_and(|u| Arc::ptr_eq(u, unit)) {
                    reading.units.remove(&unit.start);
                }
            }
        }
        stale
    }
}

impl Plan {
    /// Adds the units that cover a gap, each for its part of it.
    fn add_units(&mut self, reading: &Reading, from: u64, to: u64) {
        let before = reading.units.range(..from).next_back().filter(|(_, u)| u.end() > from);
        for (_, unit) in before.into_iter().chain(reading.units.range(from..to)) {
            let ready = unit.result().and_then(|result| result.as_ref().ok()).cloned();
            let mine = self.fresh.iter().any(|new| Arc::ptr_eq(new, unit));
            unit.touch();
            self.touched.push(unit.clone());
            self.parts.push(Part::Unit {
                from: from.max(unit.start),
                to: to.min(unit.end()),
                unit: unit.clone(),
                mine,
                ready,
            });
        }
    }
}

/// Drops the units in the range that have not been confirmed for too long.
fn expire(reading: &mut Reading, start: u64, end: u64, age_max: Duration) -> Vec<Arc<Unit>> {
    let Some(oldest) = Instant::now().checked_sub(age_max) else { return Vec::new() };
    if reading.confirmed.is_some_and(|at| at > oldest) {
        return Vec::new();
    }
    let before = reading.units.range(..start).next_back().filter(|(_, u)| u.end() > start);
    let units = before.into_iter().chain(reading.units.range(start..end));
    let old = |unit: &Unit| match unit.result() {
        Some(Ok(fetched)) => fetched.asked <= oldest,
        Some(Err(_)) => true,
        None => false,
    };
    let keys: Vec<u64> = units.filter(|(_, unit)| old(unit)).map(|(at, _)| *at).collect();
    keys.iter().filter_map(|at| reading.units.remove(at)).collect()
}

/// Returns what is to be fetched to cover `from..to`: rounded to `grain`, in parts of at most
/// `unit`, none of which overlaps an existing unit.
fn uncovered(reading: &Reading, from: u64, to: u64, grain: u64, unit: u64) -> Vec<(u64, usize)> {
    let (start, end) = (from / grain * grain, to.div_ceil(grain).saturating_mul(grain));
    let mut parts = free(reading, start, end, unit);
    parts.retain(|&(at, length)| at + length as u64 > from && at < to);
    parts
}

/// Returns the parts of `start..end` in no unit, each of at most `unit` and within one.
fn free(reading: &Reading, start: u64, end: u64, unit: u64) -> Vec<(u64, usize)> {
    let before = reading.units.range(..start).next_back().map(|(_, u)| u.end());
    let mut at = before.unwrap_or(0).max(start);
    let mut free = Vec::new();
    for (next, existing) in reading.units.range(at..end.max(at)) {
        free.push((at, *next));
        at = existing.end();
    }
    free.push((at, end));
    let mut parts = Vec::new();
    for (mut at, free_end) in free {
        while at < free_end {
            let part_end = ((at / unit + 1) * unit).min(free_end);
            parts.push((at, (part_end - at) as usize));
            at = part_end;
        }
    }
    parts
}

/// Puts the answer together. Behind the server's end of file, what lies before the end of held data
/// reads as zeros, as a hole does.
fn assemble(plan: Plan, offset: u64, end: u64) -> ReadData {
    let mut pieces: Vec<Bytes> = Vec::new();
    let (mut at, mut eof) = (offset, false);
    for part in plan.parts {
        eof = false;
        let (from, to, unit, fetched) = match part {
            Part::Held(data) => {
                at += data.len() as u64;
                pieces.push(data);
                continue;
            }
            Part::Unit { from, to, unit, ready: Some(fetched), .. } => (from, to, unit, fetched),
            Part::Unit { .. } => break,
        };
        let there = unit.start + fetched.data.len() as u64;
        if there > from {
            let until = there.min(to);
            pieces.push(
                fetched.data.slice((from - unit.start) as usize..(until - unit.start) as usize),
            );
            at = until;
        }
        eof = fetched.eof && there <= to && plan.held_end <= to;
        if at < to {
            let hole_end = plan.held_end.min(to);
            if hole_end > at {
                pieces.push(Bytes::from(vec![0; (hole_end - at) as usize]));
                at = hole_end;
            }
            if at < to {
                eof = true;
                break;
            }
        }
    }
    debug_assert!(at <= end);
    ReadData { data: joined(pieces, (at - offset) as usize), eof, attr: None }
}
