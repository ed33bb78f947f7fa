//! Finds streams in the reads of one file, and says what to read ahead.
//!
//! A *stream* goes forward through the file; several may do so at once, and the kernel sends a
//! stream's pieces slightly out of order. Its window opens at [`WINDOW_MIN`] and doubles with each
//! unit that the reader takes, up to the limit. A *stride* is three reads with the same distance
//! between them, forward or backward. Pure arithmetic: no I/O, no clock, a fixed amount of memory.

/// How many streams of a file are followed.
const STREAMS_MAX: usize = 8;
/// How far out of order a read may come and still belong to its stream: four of the kernel's
/// largest buffered reads (128 KiB).
const SLACK: u64 = 512 * 1024;
/// The first window of a stream.
const WINDOW_MIN: u64 = 512 * 1024;
/// How many strides are read ahead at most.
const STRIDES_MAX: i64 = 32;

/// One forward stream.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    next: u64,
    window: u64,
    ahead: u64,
    taken: u64,
    used: u64,
}

/// The stride detector's memory.
#[derive(Clone, Copy, Debug, Default)]
struct Stride {
    last: u64,
    distance: i64,
    repeats: u32,
    issued: i64,
}

/// What to do about a read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Advice {
    /// The stream that it belongs to; its misses are fetched in whole units.
    pub stream: Option<usize>,
    /// Ranges to fetch ahead, in order of need.
    pub ahead: Vec<(u64, u64)>,
}

/// The streams of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    streams: Vec<Stream>,
    stride: Stride,
    clock: u64,
}

impl Streams {
    /// Takes note of a read. `size` is the file's end, as far as known; nothing behind it is
    /// advised. `missed`: nothing of it was there.
    pub fn observe(
        &mut self,
        offset: u64,
        length: u64,
        size: u64,
        missed: bool,
        unit: u64,
        window_max: u64,
    ) -> Advice {
        self.clock += 1;
        let end = offset.saturating_add(length);
        if let Some(index) = self.find(offset) {
            let ahead = self.advance(index, offset, end, size, missed, unit, window_max);
            return Advice { stream: Some(index), ahead };
        }
        let fresh = Stream { next: end, used: self.clock, ..Stream::default() };
        let index = self.replace(fresh);
        if offset == 0 {
            // Who reads a file's start mostly reads on.
            let ahead = self.advance(index, 0, end, size, missed, unit, window_max);
            return Advice { stream: Some(index), ahead };
        }
        Advice { stream: None, ahead: self.strides(offset, length, size, window_max) }
    }

    /// Notes that a stream could be read ahead only up to `at`.
    pub fn stopped(&mut self, index: usize, at: u64) {
        if let Some(stream) = self.streams.get_mut(index) {
            stream.ahead = stream.ahead.min(at);
        }
    }

    /// Notes that data fetched ahead was dropped unread: halves the windows.
    pub fn wasted(&mut self) {
        for stream in &mut self.streams {
            stream.window = (stream.window / 2).max(WINDOW_MIN.min(stream.window));
        }
        self.stride.repeats = 0;
    }

    fn find(&self, offset: u64) -> Option<usize> {
        self.streams.iter().position(|stream| match stream.window {
            0 => offset == stream.next,
            _ => offset.abs_diff(stream.next) <= SLACK,
        })
    }

    fn replace(&mut self, fresh: Stream) -> usize {
        if self.streams.len() < STREAMS_MAX {
            self.streams.push(fresh);
            return self.streams.len() - 1;
        }
        let oldest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.used);
        let index = oldest.map_or(0, |(index, _)| index);
        self.streams[index] = fresh;
        index
    }

    fn advance(
        &mut self,
        index: usize,
        offset: u64,
        end: u64,
        size: u64,
        missed: bool,
        unit: u64,
        window_max: u64,
    ) -> Vec<(u64, u64)> {
        let clock = self.clock;
        let Some(stream) = self.streams.get_mut(index) else { return Vec::new() };
        stream.used = clock;
        stream.taken += end.saturating_sub(stream.next.max(offset));
        stream.next = stream.next.max(end);
        if stream.window == 0 {
            stream.window = WINDOW_MIN.min(window_max);
        } else if stream.taken >= unit {
            stream.window = (stream.window * 2).min(window_max);
            stream.taken = 0;
        }
        if missed {
            // What was fetched ahead is gone: begin again from here.
            stream.ahead = stream.ahead.min(end);
        }
        let from = stream.ahead.max(stream.next);
        let to = (stream.next.saturating_add(stream.window) / unit * unit).min(size);
        if to <= from || (to - from < unit && to < size) {
            return Vec::new();
        }
        stream.ahead = to;
        vec![(from, to)]
    }

    fn strides(&mut self, offset: u64, length: u64, size: u64, window: u64) -> Vec<(u64, u64)> {
        let stride = &mut self.stride;
        let distance = offset as i64 - stride.last as i64;
        stride.last = offset;
        if distance == stride.distance && distance.unsigned_abs() >= length.max(1) {
            stride.repeats = stride.repeats.saturating_add(1);
            stride.issued = (stride.issued - 1).max(0);
        } else {
            *stride = Stride { last: offset, distance, repeats: 0, issued: 0 };
        }
        if stride.repeats < 2 {
            return Vec::new();
        }
        let fitting = (window / length.max(1)).min(STRIDES_MAX as u64) as i64;
        let wanted = (1i64 << stride.repeats.min(6)).min(fitting);
        let mut ahead = Vec::new();
        for step in stride.issued + 1..=wanted {
            let at = step.checked_mul(distance).and_then(|by| offset.checked_add_signed(by));
            let Some(at) = at.filter(|at| *at < size) else { break };
            ahead.push((at, at.saturating_add(length).min(size)));
            stride.issued = step;
        }
        ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 256 * 1024;
    const PIECE: u64 = 128 * 1024;
    const WINDOW: u64 = 8 << 20;

    #[test]
    fn a_stream_opens_its_window_and_stops_at_the_end() {
        let (mut streams, size) = (Streams::default(), 64u64 << 20);
        let (mut reached, mut widest) = (0, 0);
        for index in 0..size / PIECE {
            let at = index * PIECE;
            let advice = streams.observe(at, PIECE, size, false, UNIT, WINDOW);
            for (from, to) in advice.ahead {
                assert!(from >= reached && to > from && to <= size);
                reached = to;
            }
            widest = widest.max(reached.saturating_sub(at + PIECE));
            assert!(reached <= at + PIECE + WINDOW);
        }
        assert_eq!(reached, size);
        assert!(widest > WINDOW - UNIT, "{widest}");
    }

    #[test]
    fn pieces_out_of_order_stay_in_their_stream() {
        let mut streams = Streams::default();
        for index in [0u64, 2, 1, 3, 5, 4, 7, 6] {
            let advice = streams.observe(index * PIECE, PIECE, 1 << 30, false, UNIT, WINDOW);
            assert_eq!(advice.stream, Some(0), "piece {index}");
        }
    }

    #[test]
    fn random_reads_are_not_read_ahead_of() {
        let mut streams = Streams::default();
        let mut at = 12345u64;
        for _ in 0..1000 {
            at = (at.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)) >> 1;
            let offset = (at % (1 << 30)) & !4095;
            let offset = offset + (4 << 20);
            let advice = streams.observe(offset, 4096, 1 << 40, true, UNIT, WINDOW);
            assert!(advice.ahead.is_empty());
        }
    }

    #[test]
    fn eight_streams_at_once_are_followed() {
        let mut streams = Streams::default();
        let mut ahead = [0u64; 8];
        for round in 0..16u64 {
            for (index, ahead) in ahead.iter_mut().enumerate() {
                let start = 1 + index as u64 * (1 << 30);
                let at = start + round * PIECE;
                let advice = streams.observe(at, PIECE, 1 << 40, false, UNIT, WINDOW);
                *ahead += advice.ahead.iter().map(|(from, to)| to - from).sum::<u64>();
            }
        }
        assert!(ahead.iter().all(|bytes| *bytes > 0), "{ahead:?}");
    }

    #[test]
    fn strides_are_found_forward_and_backward() {
        for distance in [10 << 20, -(10i64 << 20)] {
            let mut streams = Streams::default();
            let mut fetched = std::collections::BTreeSet::new();
            let mut hits = 0;
            for index in 0..40i64 {
                let at = (500i64 << 20) + index * distance;
                hits += u32::from(fetched.contains(&(at as u64)));
                let advice = streams.observe(at as u64, 4096, 1 << 40, true, UNIT, WINDOW);
                assert!(advice.ahead.iter().all(|range| fetched.insert(range.0)));
            }
            assert!(hits > 30, "{hits} hits at distance {distance}");
        }
    }
}
