//! FETCH: what the client takes, what it does not, and whom it asks.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gridvfs_vfs::ext::{self, PackedFetch};
use gridvfs_vfs::rpc::Refusal;
use gridvfs_vfs::{
    Error, FETCH_BYTES_MAX, FETCH_RANGES_MAX, Fetched, FileHandle, SeekWhence, Status, Vfs,
};

use super::model::{ROOT, handle};
use super::server::{Act, Seen, Server, caller, quick};

/// A server that has the extension program.
fn extended(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Arc<Server> {
    let server = Server::new(script);
    server.extensions.store(true, Ordering::SeqCst);
    server
}

fn is_fetch(call: &Seen) -> bool {
    (call.program, call.procedure) == (ext::PROGRAM, ext::FETCH)
}

/// Text, zeros, and what cannot be compressed, by turns.
fn mixture(length: usize) -> Vec<u8> {
    let mut random = 0x9E37_79B9u32;
    let mut noise = move || {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        random as u8
    };
    (0..length)
        .map(|at| match at / 10_000 % 3 {
            0 => b'a' + (at % 7) as u8,
            1 => 0,
            _ => noise(),
        })
        .collect()
}

fn assert_fetched(fetched: &Fetched, data: &[u8], asked: &[(u64, u32)]) {
    assert_eq!(fetched.attr.size, data.len() as u64);
    for (range, &(offset, length)) in fetched.ranges.iter().zip(asked) {
        let end = data.len().min(offset as usize + length as usize);
        let mut got = Vec::new();
        for run in range.runs() {
            match run.data {
                Some(data) => got.extend_from_slice(&data),
                None => got.resize(got.len() + run.length as usize, 0),
            }
        }
        assert!(got == data[(offset as usize).min(end)..end], "at {offset}");
    }
}

#[tokio::test]
async fn ranges_come_as_they_are() {
    let server = extended(|_| Act::Answer);
    let data = mixture(300_001);
    let file = server.model.lock().add_file("f", data.clone());
    let client = server.client(quick(2)).await;
    for level in [0, 1, 3] {
        for asked in [
            &[(0, 400_000)][..],
            &[(4096, 1), (0, 10_000), (299_008, 65_536), (1 << 40, 5)],
            &[(8192, 4096); FETCH_RANGES_MAX],
            &[],
        ] {
            let fetched = client.fetch(&caller(), &file, asked, level).await.expect("fetched");
            assert_eq!(fetched.ranges.len(), asked.len());
            assert_fetched(&fetched, &data, asked);
        }
    }
}

#[tokio::test]
async fn the_largest_fetch_of_what_cannot_be_compressed_is_taken() {
    let server = extended(|_| Act::Answer);
    let noise: Vec<u8> = mixture(30_000)[20_000..].repeat(FETCH_BYTES_MAX / 10_000 + 1);
    let file = server.model.lock().add_file("f", noise.clone());
    let client = server.client(quick(1)).await;
    let asked = [(0, FETCH_BYTES_MAX as u32)];
    let fetched = client.fetch(&caller(), &file, &asked, 0).await.expect("fetched");
    assert_fetched(&fetched, &noise, &asked);
}

#[tokio::test]
async fn fetches_are_in_flight_on_every_stripe() {
    let server = extended(|call| if is_fetch(call) { Act::Gather(24) } else { Act::Answer });
    let data = mixture(24 * 65_536);
    let file = server.model.lock().add_file("f", data.clone());
    let mut options = quick(3);
    options.timing.resend = Duration::from_secs(60);
    options.timing.resend_max = Duration::from_secs(60);
    let client = server.client(options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..24u64 {
        let client = client.clone();
        tasks.spawn(async move {
            let asked = [(at * 65_536, 65_536)];
            (asked, client.fetch(&caller(), &file, &asked, 1).await.expect("fetched"))
        });
    }
    while let Some(done) = tasks.join_next().await {
        let (asked, fetched) = done.expect("no panic");
        assert_fetched(&fetched, &data, &asked);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 3);
    assert_eq!(server.held_max.load(Ordering::SeqCst), 24);
}

#[tokio::test]
async fn one_garbled_or_lost_reply_is_asked_for_again() {
    for lie in [
        Act::Close,
        Act::CloseWithin(300),
        Act::Garble(|reply| reply.truncate(60)),
        // The number of ranges.
        Act::Garble(|reply| reply[24 + 4 + 84..][..4].fill(0xff)),
        Act::Raw(vec![0xff; 100]),
    ] {
        let server = extended(move |call| match is_fetch(call) {
            true if call.before == 0 => lie.clone(),
            _ => Act::Answer,
        });
        let data = mixture(50_000);
        let file = server.model.lock().add_file("f", data.clone());
        let client = server.client(quick(2)).await;
        let asked = [(0, 65_536)];
        let fetched = client.fetch(&caller(), &file, &asked, 3).await.expect("fetched");
        assert_fetched(&fetched, &data, &asked);
        assert_eq!(server.count(ext::FETCH), 2);
    }
}

#[tokio::test]
async fn lies_are_errors_and_no_more() {
    type Lie = fn(&mut PackedFetch);
    let lies: [(&str, Lie); 9] = [
        ("fewer ranges", |packed| packed.ranges.truncate(1)),
        ("a longer range", |packed| packed.ranges[1].0 += 1),
        ("a shorter range", |packed| packed.ranges[1].0 -= 1),
        ("a map of another range", |packed| packed.ranges[0].1.push(0)),
        ("zeros that are data", |packed| packed.ranges[0].1[0] |= 1),
        ("a raw length of its own", |packed| packed.raw_bytes = u32::MAX),
        ("garbage", |packed| packed.data = Bytes::from_static(b"\x28\xb5\x2f\xfd and so on")),
        ("a bomb", |packed| {
            packed.data = zstd::bulk::compress(&vec![7; 256 << 20], 1).expect("compresses").into();
        }),
        ("a frame that says it is none", |packed| packed.compressed = false),
    ];
    for (name, lie) in lies {
        let server = extended(|_| Act::Answer);
        let data = mixture(200_000);
        let file = server.model.lock().add_file("f", data.clone());
        server.model.lock().fetch_lie = Some(lie);
        let client = server.client(quick(1)).await;
        let asked = [(0, 100_000), (102_400, 50_000)];
        let fetched = client.fetch(&caller(), &file, &asked, 1).await;
        assert!(matches!(fetched, Err(Error::Protocol(_))), "{name}: {fetched:?}");
        assert_eq!(server.connections.load(Ordering::SeqCst), 1, "{name}");
        server.model.lock().fetch_lie = None;
        let fetched = client.fetch(&caller(), &file, &asked, 1).await.expect(name);
        assert_fetched(&fetched, &data, &asked);
    }
}

async fn fetch_of(server: &Arc<Server>, file: &FileHandle, times: usize) -> Vec<Option<Error>> {
    let client = server.client(quick(1)).await;
    let mut errors = Vec::new();
    for _ in 0..times {
        errors.push(client.fetch(&caller(), file, &[(0, 4096)], 1).await.err());
    }
    // The rest of the extension program is as it was.
    if server.extensions.load(Ordering::SeqCst) {
        client.seek(&caller(), file, 0, SeekWhence::Data).await.expect("sought");
    }
    errors
}

#[tokio::test]
async fn a_server_without_it_is_asked_once() {
    let refused = Act::Refuse(Refusal::ProcedureUnavailable);
    let server = extended(move |call| if is_fetch(call) { refused.clone() } else { Act::Answer });
    let file = server.model.lock().add_file("f", vec![1; 100]);
    let none = Some(Error::Status(Status::NOTSUPP));
    assert_eq!(fetch_of(&server, &file, 3).await, [none.clone(), none.clone(), none.clone()]);
    assert_eq!(server.count(ext::FETCH), 1);

    let plain = Server::new(|_| Act::Answer);
    let file = plain.model.lock().add_file("f", vec![1; 100]);
    assert_eq!(fetch_of(&plain, &file, 2).await, [none.clone(), none]);
    assert_eq!(plain.count(ext::FETCH), 0);
}

#[tokio::test]
async fn a_change_meanwhile_is_told_at_once() {
    let server = extended(|call| match is_fetch(call) {
        true => Act::Status(Status::JUKEBOX),
        false => Act::Answer,
    });
    let file = server.model.lock().add_file("f", vec![1; 100]);
    assert_eq!(fetch_of(&server, &file, 1).await, [Some(Error::Status(Status::JUKEBOX))]);
    assert_eq!(server.count(ext::FETCH), 1);
}

#[tokio::test]
async fn what_is_too_much_is_not_sent() {
    let server = extended(|_| Act::Answer);
    let client = server.client(quick(1)).await;
    let root = handle(ROOT);
    for (ranges, level) in [
        (vec![(0, FETCH_BYTES_MAX as u32 + 1)], 1),
        (vec![(0, 1); FETCH_RANGES_MAX + 1], 1),
        (vec![(5, 4096)], 1),
        (vec![(0, 4096)], 20),
    ] {
        let refused = client.fetch(&caller(), &root, &ranges, level).await;
        assert_eq!(refused, Err(Error::Status(Status::INVAL)));
    }
    assert_eq!(server.count(ext::FETCH), 0);
}
