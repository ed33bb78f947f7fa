//! `gridvfs-wan`: an emulated wide-area link on one machine.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use gridvfs_bench::units;
use gridvfs_bench::wan::link::Link;
use gridvfs_bench::wan::relay::Relay;
use gridvfs_bench::wan::{Change, Conditions, control};
use serde_json::{Value, json};

/// An emulated wide-area link: two network namespaces with real TCP between them.
///
/// `up` makes a link and returns; `exec` runs a program at one of its ends, a or b; `set`, `cut`
/// and `restore` change it while it is in use; `down` ends it. Without root, `relay` delays TCP
/// connections instead.
#[derive(Parser)]
#[command(name = "gridvfs-wan", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a link (needs root).
    Up {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        conditions: ConditionArgs,
        /// Print the link's state as JSON: the ends' namespaces and addresses.
        #[arg(long)]
        json: bool,
    },
    /// Run a program at one end of a link.
    Exec {
        /// The link.
        name: String,
        /// Its end.
        side: SideArg,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Change a link while it is in use.
    Set {
        /// The link.
        name: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let nothing pass: what is under way on a link is lost.
    Cut {
        /// The link.
        name: String,
    },
    /// Let everything pass again.
    Restore {
        /// The link.
        name: String,
    },
    /// Print what a link is like and what it has carried.
    Status {
        /// The link.
        name: String,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// End a link.
    Down {
        /// The link.
        name: String,
    },
    /// List the links that are up.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Pass TCP connections on with a delay, until interrupted. Needs no root; loses nothing.
    Relay {
        /// Where to listen. Port 0 takes a free one, which is printed.
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: SocketAddr,
        /// Where connections go.
        #[arg(long, value_name = "ADDRESS:PORT")]
        to: SocketAddr,
        /// A name, by which set, cut, restore and status find it.
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        conditions: ConditionArgs,
    },
    #[command(hide = true)]
    Daemon { name: String, conditions: String },
}

#[derive(Args)]
struct Name {
    /// The link's name.
    #[arg(long, default_value = "wan")]
    name: String,
}

#[derive(Args)]
struct ConditionArgs {
    /// Round trip: 32ms, 1.5s, 250us.
    #[arg(long, default_value = "32ms", value_parser = units::duration)]
    rtt: std::time::Duration,
    /// Capacity of each direction: 1gbit, 20mbit, unlimited.
    #[arg(long, default_value = "1gbit", value_parser = units::rate)]
    rate: u64,
    /// Packets lost at random, each way: 0.1%.
    #[arg(long, default_value = "0", value_parser = units::share)]
    loss: f64,
    /// Queue before the bottleneck: 4MiB. Default: a round trip's worth, at least 1MiB.
    #[arg(long, default_value = "0", value_parser = units::bytes)]
    queue: u64,
}

#[derive(Args)]
#[group(required = true, multiple = true)]
struct ChangeArgs {
    /// Round trip: 32ms, 1.5s, 250us.
    #[arg(long, value_parser = units::duration)]
    rtt: Option<std::time::Duration>,
    /// Capacity of each direction: 1gbit, 20mbit, unlimited.
    #[arg(long, value_parser = units::rate)]
    rate: Option<u64>,
    /// Packets lost at random, each way: 0.1%.
    #[arg(long, value_parser = units::share)]
    loss: Option<f64>,
    /// Queue before the bottleneck: 4MiB.
    #[arg(long, value_parser = units::bytes)]
    queue: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum SideArg {
    A,
    B,
}

impl From<ConditionArgs> for Conditions {
    fn from(args: ConditionArgs) -> Self {
        Self {
            rtt_seconds: args.rtt.as_secs_f64(),
            rate_bits: args.rate,
            loss: args.loss,
            queue_bytes: args.queue,
            cut: false,
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gridvfs-wan: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    let cut = |name: &str, cut| {
        let change = Change { cut: Some(cut), ..Change::default() };
        control::change(name, change).map(drop)
    };
    match verb {
        Verb::Up { name, conditions, json } => up(&name.name, &conditions.into(), json),
        Verb::Exec { name, side, command } => exec(&name, side, &command),
        Verb::Set { name, change } => {
            let change = Change {
                rtt_seconds: change.rtt.map(|rtt| rtt.as_secs_f64()),
                rate_bits: change.rate,
                loss: change.loss,
                queue_bytes: change.queue,
                cut: None,
            };
            print(&control::change(&name, change)?, false)
        }
        Verb::Cut { name } => cut(&name, true),
        Verb::Restore { name } => cut(&name, false),
        Verb::Status { name, json } => print(&control::status(&name)?, json),
        Verb::Down { name } => control::down(&name).map(drop),
        Verb::List { json } => {
            let links = control::list();
            if json {
                return print(&json!(links), true);
            }
            links.iter().try_for_each(|link| print(link, false))
        }
        Verb::Relay { listen, to, name, conditions } => {
            // Before it listens for others: a name that is taken ends it here.
            let control = name.as_deref().map(control::listen).transpose()?;
            let relay = Relay::start(listen, to, conditions.into())?;
            println!("{}", relay.address());
            std::io::stdout().flush()?;
            match (control, name) {
                (Some(socket), Some(name)) => control::serve(&name, socket, Arc::new(relay)),
                _ => loop {
                    std::thread::park();
                },
            }
        }
        Verb::Daemon { name, conditions } => daemon(&name, &conditions),
    }
}

/// Starts the process that carries the packets, and waits until it does.
fn up(name: &str, conditions: &Conditions, json: bool) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root; `gridvfs-wan relay` does without");
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("daemon").arg(name).arg(serde_json::to_string(conditions)?);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/");
    // SAFETY: setsid is safe between fork and exec.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command.spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    if line.is_empty() {
        // Its own words are on the standard error that we share.
        bail!("the link did not come up ({})", child.wait()?);
    }
    print(&serde_json::from_str(&line)?, json)
}

fn daemon(name: &str, conditions: &str) -> Result<()> {
    let socket = control::listen(name)?;
    let link = Arc::new(Link::up(serde_json::from_str(conditions)?)?);
    let mut status = control::Controlled::status(&*link);
    status["name"] = name.into();
    println!("{status}");
    std::io::stdout().flush()?;
    // From here on nobody reads what it says, and nobody waits for its streams to close.
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    control::serve(name, socket, link)
}

/// Becomes the program, in the namespace of that end. Mounts stay as they are, unlike with
/// `ip netns exec`.
fn exec(name: &str, side: SideArg, command: &[String]) -> Result<()> {
    let status = control::status(name)?;
    let side = match side {
        SideArg::A => "a",
        SideArg::B => "b",
    };
    let Some(path) = status[side]["netns"].as_str() else {
        bail!("{name} is a relay: it has no ends to run programs at");
    };
    let namespace = std::fs::File::open(path)
        .with_context(|| format!("cannot open the namespace {path} (are you root?)"))?;
    nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)
        .context("cannot enter the namespace")?;
    drop(namespace);
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    Err(error).with_context(|| format!("cannot run {}", command[0]))
}

fn print(status: &Value, json: bool) -> Result<()> {
    if json {
        println!("{status}");
        return Ok(());
    }
    let conditions: Conditions = serde_json::from_value(status["conditions"].clone())?;
    let rate = match conditions.rate_bits {
        0 => "no limit".to_string(),
        rate => format!("{} Mbit/s", rate as f64 / 1e6),
    };
    println!(
        "{}: {} ms, {rate}, {} % lost{}",
        status["name"].as_str().unwrap_or("?"),
        conditions.rtt_seconds * 1e3,
        conditions.loss * 100.0,
        if conditions.cut { ", CUT" } else { "" }
    );
    if status["kind"] == "relay" {
        println!("  {} -> {}", text(&status["listen"]), text(&status["to"]));
    }
    for side in ["a", "b"].iter().filter(|side| !status[**side].is_null()) {
        let (address, netns) = (&status[*side]["address"], &status[*side]["netns"]);
        println!("  {side}  {}  {}", text(address), text(netns));
    }
    for way in ["a_to_b", "b_to_a"] {
        let bytes = status[way]["bytes"].as_u64().unwrap_or(0) as f64 / f64::from(1 << 20);
        let lost: u64 = ["dropped_queue", "dropped_loss", "dropped_cut"]
            .iter()
            .filter_map(|kind| status[way][*kind].as_u64())
            .sum();
        println!("  {}: {bytes:.1} MiB, {lost} packets dropped", way.replace('_', " "));
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}
