//! Settings of a client, each with its default and why it is so.

use std::time::Duration;

use gridvfs_vfs::FETCH_BYTES_MAX;

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The number of channels. OpenSSH grants a channel 2 MiB of window, 62 MB/s at 32 ms: four
    /// carry 1 Gbit/s with room.
    pub stripes: usize,
    /// The most calls in flight on each stripe. At 32 ms and 4 stripes, 128 are 16,000 calls a
    /// second; NFS servers start to hold back a connection at about as many.
    pub calls_per_stripe: usize,
    /// The most bytes of READ and WRITE data in flight in the session. Eight times what a
    /// 1 Gbit/s link of 32 ms holds, and half of what the mount process may use.
    pub data_bytes_max: usize,
    /// The largest single READ or WRITE, whatever the server would take.
    pub transfer_bytes_max: u32,
    /// The largest reply that is taken: that to the largest FETCH, with its head. A longer one is
    /// a protocol error.
    pub record_bytes_max: usize,
    /// After how long without progress a call fails with [`gridvfs_vfs::Error::Unreachable`].
    /// `None`: never, as with a hard mount. A call waits on while others are answered, as on a
    /// slow link with a long queue, but not beyond [`Timing::PATIENCE`] times this.
    pub timeout: Option<Duration>,
    /// The identity that the server is shown instead of the caller's: uid and gid.
    pub credential: Option<(u32, u32)>,
    /// When to ask, resend and reconnect.
    pub timing: Timing,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            stripes: 4,
            calls_per_stripe: 128,
            data_bytes_max: 32 << 20,
            transfer_bytes_max: 1 << 20,
            record_bytes_max: FETCH_BYTES_MAX + (64 << 10),
            timeout: None,
            credential: None,
            timing: Timing::default(),
        }
    }
}

/// When to ask, resend and reconnect.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a channel with calls outstanding may be silent before it is asked for a sign of
    /// life, and again how long before it counts as dead. Well above the time that TCP needs to
    /// mend a lost packet, well below what a user takes for a hang.
    pub silence: Duration,
    /// The most that [`Timing::silence`] grows to when new channels fall silent as well: the
    /// server hangs, and sending it everything again and again would not help.
    pub silence_max: Duration,
    /// After how long an idle channel is asked for a sign of life, before NAT boxes forget it.
    pub idle_ping: Duration,
    /// After how long a call is sent again although its channel lives. Channels do not lose
    /// calls, but servers have been seen to.
    pub resend: Duration,
    /// The longest that this interval grows to by doubling.
    pub resend_max: Duration,
    /// The first pause before a reconnection.
    pub reconnect_min: Duration,
    /// The pause that it grows to by doubling. After a long cut, the mount is back within this
    /// time of the link.
    pub reconnect_max: Duration,
    /// The first pause before a call is repeated that the server was too busy for (JUKEBOX).
    pub jukebox_min: Duration,
    /// The pause that it grows to by doubling.
    pub jukebox_max: Duration,
    /// How long the first calls of a new client may take, whatever `timeout` is.
    pub setup: Duration,
}

impl Timing {
    /// How many timeouts a call may take while the session makes progress with others.
    pub const PATIENCE: u32 = 10;
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(5),
            silence_max: Duration::from_secs(60),
            idle_ping: Duration::from_secs(60),
            resend: Duration::from_secs(30),
            resend_max: Duration::from_secs(600),
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(5),
            jukebox_min: Duration::from_millis(100),
            jukebox_max: Duration::from_secs(5),
            setup: Duration::from_secs(30),
        }
    }
}
