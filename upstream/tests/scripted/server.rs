//! A server that does what a test's script says: answer, or lie in one of many ways.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use gridvfs_upstream::{
    Channel, ClientOptions, ConnectError, Connector, NfsClient, RecordReader, Terms, Timing,
};
use gridvfs_vfs::rpc::{CallHeader, Refusal, ReplyHeader, record_mark};
use gridvfs_vfs::xdr::{Decoder, Encoder, Xdr};
use gridvfs_vfs::{Caller, nfs3};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::sync::{Notify, mpsc};

use super::model::{Model, ROOT, handle};

/// What to do about a call.
#[derive(Clone)]
pub enum Act {
    /// Execute it and answer.
    Answer,
    /// Answer after a while; other calls go on.
    Late(Duration),
    /// Answer when this many calls are held in this way.
    Gather(usize),
    /// Execute it, answer nothing.
    Lose,
    /// Do not even execute it.
    Ignore,
    /// Execute it and close the channel without an answer.
    Close,
    /// Execute it and close the channel after this many bytes of the answer.
    CloseWithin(usize),
    /// Execute it and answer twice.
    Twice,
    /// Execute it and send these bytes in place of the record, mark included.
    Raw(Vec<u8>),
    /// Execute it and send the answer as this makes it: the record without its mark.
    Garble(fn(&mut Vec<u8>)),
    /// Send the answer in fragments of this many bytes.
    Fragments(usize),
    /// Refuse it.
    Refuse(Refusal),
    /// Do not execute it and answer with this status alone.
    Status(gridvfs_vfs::Status),
}

/// A call as the script sees it.
pub struct Seen {
    pub program: u32,
    pub procedure: u32,
    /// How many calls of this procedure came before it.
    pub before: u64,
    /// How many times this very call came before.
    pub repeats: u64,
    pub machine_name: Bytes,
}

type Script = Box<dyn Fn(&Seen) -> Act + Send + Sync>;

pub struct Server {
    pub model: Mutex<Model>,
    script: Script,
    /// Replies by xid, across channels, where the server remembers them.
    remembered: Option<Mutex<HashMap<u32, Vec<u8>>>>,
    counts: Mutex<HashMap<u32, u64>>,
    arrivals: Mutex<HashMap<u32, u64>>,
    pub executed: AtomicU64,
    pub connections: AtomicUsize,
    /// While set, connections are refused.
    pub down: AtomicBool,
    /// Breaks all channels when notified.
    pub cut: Notify,
    pub generation: AtomicU64,
    /// Whether channels are said to have the extension program.
    pub extensions: AtomicBool,
    /// How many calls are held at once by `Act::Late`, and the most that were.
    pub held: AtomicUsize,
    pub held_max: AtomicUsize,
}

impl Server {
    pub fn new(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Arc<Self> {
        Self::build(false, Box::new(script))
    }

    /// A server with a duplicate request cache over all channels, as our own proxy.
    pub fn remembering(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Arc<Self> {
        Self::build(true, Box::new(script))
    }

    fn build(remembers: bool, script: Script) -> Arc<Self> {
        Arc::new(Self {
            model: Mutex::new(Model::new()),
            script,
            remembered: remembers.then(Mutex::default),
            counts: Mutex::default(),
            arrivals: Mutex::default(),
            executed: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            down: AtomicBool::new(false),
            cut: Notify::new(),
            generation: AtomicU64::new(1),
            extensions: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            held_max: AtomicUsize::new(0),
        })
    }

    pub async fn client(self: &Arc<Self>, options: ClientOptions) -> Arc<NfsClient> {
        NfsClient::connect(Arc::new(Scripted(self.clone())), options).await.expect("connects")
    }

    /// How many calls of a procedure came, repetitions included.
    pub fn count(&self, procedure: u32) -> u64 {
        self.counts.lock().get(&procedure).copied().unwrap_or(0)
    }

    fn see(&self, header: &CallHeader) -> Seen {
        let increment = |counts: &Mutex<HashMap<u32, u64>>, key| {
            let mut counts = counts.lock();
            let count = counts.entry(key).or_default();
            *count += 1;
            *count - 1
        };
        Seen {
            program: header.program,
            procedure: header.procedure,
            before: increment(&self.counts, header.procedure),
            repeats: increment(&self.arrivals, header.xid),
            machine_name: header.credential.auth_sys().expect("AUTH_SYS").machine_name,
        }
    }

    fn execute(&self, header: &CallHeader, decoder: &mut Decoder) -> Vec<u8> {
        if let Some(remembered) = &self.remembered
            && let Some(reply) = remembered.lock().get(&header.xid)
        {
            return reply.clone();
        }
        if header.procedure != nfs3::NULL {
            self.executed.fetch_add(1, Ordering::SeqCst);
        }
        let mut reply = Encoder::new();
        ReplyHeader { xid: header.xid, outcome: Ok(()) }.encode(&mut reply);
        let mut reply = reply.into_vec();
        reply.extend(self.model.lock().execute(header, decoder));
        if let Some(remembered) = &self.remembered {
            remembered.lock().insert(header.xid, reply.clone());
        }
        reply
    }

    async fn serve(self: Arc<Self>, stream: DuplexStream) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut records = RecordReader::new(reader, 8 << 20);
        let (replies, mut outgoing) = mpsc::unbounded_channel::<(Vec<u8>, bool)>();
        let this = self.clone();
        let receive = async move {
            while let Ok(record) = records.next().await {
                this.handle(record, &replies);
            }
        };
        let send = async move {
            while let Some((bytes, close)) = outgoing.recv().await {
                if writer.write_all(&bytes).await.is_err() || close {
                    return;
                }
            }
        };
        tokio::select! {
            () = receive => {}
            () = send => {}
            () = self.cut.notified() => {}
        }
    }

    fn handle(self: &Arc<Self>, record: Bytes, replies: &mpsc::UnboundedSender<(Vec<u8>, bool)>) {
        let mut decoder = Decoder::new(record);
        let header = CallHeader::decode(&mut decoder).expect("a call");
        let act = (self.script)(&self.see(&header));
        let whole = |reply: Vec<u8>| [&record_mark(reply.len())[..], &reply].concat();
        let refused = |outcome, rest: &[u8]| {
            let mut reply = Encoder::new();
            ReplyHeader { xid: header.xid, outcome }.encode(&mut reply);
            [reply.into_vec(), rest.to_vec()].concat()
        };
        let send = |bytes, close| drop(replies.send((bytes, close)));
        match act {
            Act::Ignore => {}
            Act::Refuse(refusal) => send(whole(refused(Err(refusal), &[])), false),
            Act::Status(status) => send(whole(refused(Ok(()), &status.0.to_be_bytes())), false),
            Act::Late(_) | Act::Gather(_) => {
                let (server, replies) = (self.clone(), replies.clone());
                let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
                self.held_max.fetch_max(held, Ordering::SeqCst);
                tokio::spawn(async move {
                    match act {
                        Act::Late(delay) => tokio::time::sleep(delay).await,
                        Act::Gather(calls) => {
                            while server.held_max.load(Ordering::SeqCst) < calls {
                                tokio::time::sleep(Duration::from_millis(2)).await;
                            }
                        }
                        _ => {}
                    }
                    server.held.fetch_sub(1, Ordering::SeqCst);
                    let reply = server.execute(&header, &mut decoder);
                    let _ = replies.send((whole(reply), false));
                });
            }
            act => {
                let reply = self.execute(&header, &mut decoder);
                match act {
                    Act::Answer => send(whole(reply), false),
                    Act::Lose => {}
                    Act::Close => send(Vec::new(), true),
                    Act::CloseWithin(bytes) => {
                        let mut reply = whole(reply);
                        reply.truncate(bytes);
                        send(reply, true);
                    }
                    Act::Twice => send([whole(reply.clone()), whole(reply)].concat(), false),
                    Act::Raw(bytes) => send(bytes, false),
                    Act::Garble(how) => {
                        let mut reply = reply;
                        how(&mut reply);
                        send(whole(reply), false);
                    }
                    Act::Fragments(size) => {
                        let mut stream = Vec::new();
                        let mut pieces = reply.chunks(size).peekable();
                        while let Some(piece) = pieces.next() {
                            let mark = record_mark(piece.len());
                            let first = mark[0] & if pieces.peek().is_some() { 0x7f } else { 0xff };
                            stream.extend([first, mark[1], mark[2], mark[3]]);
                            stream.extend(piece);
                        }
                        send(stream, false);
                    }
                    _ => unreachable!("handled above"),
                }
            }
        }
    }
}

/// Opens channels to a scripted server.
pub struct Scripted(pub Arc<Server>);

#[async_trait]
impl Connector for Scripted {
    async fn connect(&self, _stripe: usize) -> Result<Channel, ConnectError> {
        if self.0.down.load(Ordering::SeqCst) {
            return Err(ConnectError::Transient("down".into()));
        }
        self.0.connections.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.0.clone().serve(far));
        let generation = self.0.generation.load(Ordering::SeqCst);
        let terms = Terms {
            machine_name: format!("key-{generation}"),
            extensions: self.0.extensions.load(Ordering::SeqCst),
            fetch: self.0.extensions.load(Ordering::SeqCst),
            changes: false,
            generation,
            root: Some(handle(ROOT)),
            replay_cache: self.0.remembered.is_some(),
        };
        let (reader, writer) = tokio::io::split(near);
        Ok(Channel::new(reader, writer, terms))
    }

    fn describe(&self) -> String {
        "the scripted server".into()
    }
}

/// Options with which everything that takes seconds takes milliseconds.
pub fn quick(stripes: usize) -> ClientOptions {
    let ms = Duration::from_millis;
    ClientOptions {
        stripes,
        timing: Timing {
            silence: ms(100),
            silence_max: ms(400),
            idle_ping: ms(60_000),
            resend: ms(300),
            resend_max: ms(1000),
            reconnect_min: ms(5),
            reconnect_max: ms(50),
            jukebox_min: ms(5),
            jukebox_max: ms(20),
            setup: ms(10_000),
        },
        ..ClientOptions::default()
    }
}

pub fn caller() -> Caller {
    Caller { uid: 1000, gid: 1000, groups: vec![10, 20] }
}
