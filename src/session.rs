//! The registry of running sessions and their control sockets.
//!
//! Each mount, and each standing proxy, leaves `sessions/NAME.json` (who and where) and `sessions/NAME.sock` (mode 0600) in
//! the runtime directory. A request is one line of JSON, `{"v":1,"verb":"status"}`; the reply is
//! one line, `{"ok":true,…}` or `{"ok":false,"error":"…"}`. The verb `wait` is answered when the
//! session has ended. docs/control.md describes it.

mod control;
mod registry;
mod server;

pub use control::Client;
pub use registry::{Record, Registration, find, forget_dead, forget_if_dead, list, valid_name};
pub use server::{Control, Progress, Server};
