//! What signals ask of a mount (paper, section 4.2): SIGUSR1 writes back, SIGUSR2 flushes, SIGHUP
//! reads the settings file again; SIGTERM and SIGINT unmount.

use std::sync::Arc;

use anyhow::Result;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::Plan;
use super::control::SessionControl;
use super::manager::{Manager, Service};

/// Handles signals from here on.
pub fn handle(
    runtime: &Runtime,
    plan: &Plan,
    control: &Arc<SessionControl>,
    manager: &Arc<Manager>,
) -> Result<()> {
    unmount_when_asked(runtime, plan)?;
    let mut write_back = signal(SignalKind::user_defined1())?;
    let mut flush = signal(SignalKind::user_defined2())?;
    // The terminal that the mount was made from may have been closed: no reason to end.
    let mut hang_up = signal(SignalKind::hangup())?;
    let (control, manager) = (control.clone(), manager.clone());
    runtime.spawn(async move {
        loop {
            let (what, control) = tokio::select! {
                _ = write_back.recv() => ("write back", control.clone()),
                _ = flush.recv() => ("flush", control.clone()),
                _ = hang_up.recv() => {
                    manager.reloading();
                    let mut words = control.words();
                    match control.reload() {
                        Ok(true) => log::info!("the settings file was read again"),
                        Ok(false) => {}
                        Err(error) => {
                            words = format!("{error:#}; the settings stay as they were");
                            log::error!("{words}");
                        }
                    }
                    manager.ready(&words);
                    continue;
                }
            };
            // Not waited for: it may take as long as the link is cut.
            tokio::spawn(async move {
                log::info!("asked by a signal to {what}");
                let done = match what {
                    "flush" => control.flush().await,
                    _ => control.write_back().await,
                };
                match done {
                    Ok(()) => log::info!("{what}: done"),
                    Err(error) => log::error!("{what}: {error:#}"),
                }
            });
        }
    });
    Ok(())
}

/// SIGTERM and SIGINT unmount, as they do for sshfs; busy or not, since whoever sends them wants
/// the process to end. What is held is written back all the same; a second signal gives that up.
fn unmount_when_asked(runtime: &Runtime, plan: &Plan) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mountpoint = plan.mountpoint.clone();
    let has_cache = plan.has_cache();
    runtime.spawn(async move {
        let mut asked = false;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked {
                match has_cache {
                    true => log::error!("asked to end a second time: the rest stays in the cache"),
                    false => log::error!("asked to end a second time: the rest is given up"),
                }
                std::process::exit(1);
            }
            asked = true;
            let mountpoint = mountpoint.clone();
            let unmounted = tokio::task::spawn_blocking(move || {
                gridvfs_fuse::unmount(&mountpoint, false)
                    .or_else(|_| gridvfs_fuse::unmount(&mountpoint, true))
            });
            if let Ok(Err(error)) = unmounted.await {
                log::error!("cannot unmount: {error}");
            }
        }
    });
    Ok(())
}
