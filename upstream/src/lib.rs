//! The NFS version 3 client: an [`NfsClient`] is a [`gridvfs_vfs::Vfs`] whose files live on a
//! server at the other end of one or several byte streams.
//!
//! - [`Connector`] opens channels (byte streams): TCP, unix sockets, and `ssh` child processes.
//! - [`RpcClient`] multiplexes ONC RPC calls (RFC 5531) over the channels of a session, its
//!   stripes: many calls in flight on each, replies in any order, reconnection, retransmission.
//! - [`NfsClient`] speaks RFC 1813 over it, and [`MountTarget`] the MOUNT protocol.
//!
//! The crate keeps what is in flight and nothing else: no attributes, no names, no data. It prints
//! nothing, reads no environment and never blocks a thread. Its tasks run on the tokio runtime
//! that is current where a client is connected, and end when the client is dropped.

mod client;
mod connector;
mod counters;
pub mod greeting;
mod mount;
mod options;
mod record;
mod rpc;
pub mod ssh;

pub use client::NfsClient;
pub use connector::{
    Channel, ConnectError, Connector, KeyedConnector, TcpConnector, Terms, UnixConnector,
};
pub use counters::Counters;
pub use mount::{MountTarget, ask_hops};
pub use options::{ClientOptions, Timing};
pub use record::{RecordError, RecordReader};
pub use rpc::{CallClass, CallError, Reply, Request, RpcClient};
