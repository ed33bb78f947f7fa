//! The emulated link, as the program that others use.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const WAN: &str = env!("CARGO_BIN_EXE_gridvfs-wan");
const RTT: Duration = Duration::from_millis(40);

fn wan(arguments: &[&str]) -> Output {
    Command::new(WAN).args(arguments).stdin(Stdio::null()).output().expect("runs")
}

fn told(arguments: &[&str]) -> serde_json::Value {
    let output = wan(arguments);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {words}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// A name that no other test has.
fn name(of: &str) -> String {
    format!("test-{of}-{}", std::process::id())
}

/// A link or relay, ended at the end.
struct Up(String, Option<Child>);

impl Drop for Up {
    fn drop(&mut self) {
        wan(&["down", &self.0]);
        if let Some(child) = &mut self.1 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends back what it gets, on one connection.
fn echo(listener: TcpListener) {
    let (mut stream, _) = listener.accept().expect("accepts");
    let mut buffer = vec![0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
}

/// Goes through a connection to [`echo`] in all weathers.
fn exercise(name: &str, mut stream: TcpStream) {
    let data: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let start = Instant::now();
    stream.write_all(b"x").expect("sends");
    stream.read_exact(&mut [0]).expect("receives");
    assert!(start.elapsed() >= RTT, "{:?}", start.elapsed());

    let mut back = vec![0; data.len()];
    std::thread::scope(|scope| {
        let mut sender = stream.try_clone().expect("clone");
        let data = &data;
        scope.spawn(move || sender.write_all(data).expect("sends"));
        stream.read_exact(&mut back).expect("receives");
    });
    assert!(back == data);

    assert!(wan(&["cut", name]).status.success());
    assert_eq!(told(&["status", name, "--json"])["conditions"]["cut"], true);
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("sets");
    stream.write_all(b"y").expect("is taken");
    let mut byte = [0];
    assert!(stream.read_exact(&mut byte).is_err(), "nothing passes a cut");
    assert!(wan(&["restore", name]).status.success());
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("sets");
    stream.read_exact(&mut byte).expect("what was sent is sent again");
    assert_eq!(&byte, b"y");

    assert!(wan(&["set", name, "--rtt", "100ms"]).status.success());
    let start = Instant::now();
    stream.write_all(b"z").expect("sends");
    stream.read_exact(&mut byte).expect("receives");
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
    let status = told(&["status", name, "--json"]);
    for way in ["a_to_b", "b_to_a"] {
        let bytes = status[way]["bytes"].as_u64().expect("counted");
        assert!(bytes >= 3_000_000, "{way}: {bytes}");
    }
}

#[test]
fn a_relay_delays_cuts_and_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
    let to = listener.local_addr().expect("bound").to_string();
    let name = name("relay");
    let mut relay = Command::new(WAN)
        .args(["relay", "--listen", "127.0.0.1:0", "--to", &to, "--rtt", "40ms"])
        .args(["--rate", "200mbit", "--name", &name])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut line = String::new();
    BufReader::new(relay.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    let up = Up(name, Some(relay));
    let server = std::thread::spawn(move || echo(listener));
    let stream = TcpStream::connect(line.trim()).expect("connects");
    exercise(&up.0, stream);
    server.join().expect("the end of the stream arrives");
    // Two of a name are one too many; and a relay has no packets to lose.
    let second = wan(&["relay", "--listen", "127.0.0.1:0", "--to", &to, "--name", &up.0]);
    assert!(!second.status.success());
    assert!(!wan(&["set", &up.0, "--loss", "1%"]).status.success());
}

#[test]
fn a_link_carries_tcp_between_namespaces() {
    let test = "a_link_carries_tcp_between_namespaces";
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } != 0 || !std::path::Path::new("/dev/net/tun").exists() {
        println!("SKIPPED: {test}: needs root and /dev/net/tun");
        return;
    }
    let name = name("link");
    let state = told(&["up", "--name", &name, "--rtt", "40ms", "--rate", "200mbit", "--json"]);
    let up = Up(name, None);
    let enter = |side: &str| {
        let path = state[side]["netns"].as_str().expect("a path").to_string();
        move || {
            let namespace = std::fs::File::open(path).expect("opens");
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enters");
        }
    };
    let address = format!("{}:5000", state["b"]["address"].as_str().expect("an address"));
    let (bound, there) = (enter("b"), address.clone());
    let (ready, wait) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        bound();
        let listener = TcpListener::bind(there).expect("listens");
        ready.send(()).expect("waited for");
        echo(listener);
    });
    wait.recv().expect("the server listens");
    let (here, link) = (enter("a"), up.0.clone());
    std::thread::spawn(move || {
        here();
        let stream = TcpStream::connect(address).expect("connects");
        exercise(&link, stream);
        // Single segments are lost, and sent again.
        assert!(wan(&["set", &link, "--loss", "2%", "--rtt", "4ms"]).status.success());
    })
    .join()
    .expect("no panic");
    server.join().expect("the end of the stream arrives");

    let output = wan(&["exec", &up.0, "a", "--", "cat", "/proc/net/dev"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("wan0"));
    let second = wan(&["up", "--name", &up.0]);
    assert!(String::from_utf8_lossy(&second.stderr).contains("already"), "{second:?}");
    let listed = told(&["list", "--json"]);
    assert!(listed.as_array().expect("a list").iter().any(|link| link["name"] == up.0.as_str()));
    assert!(wan(&["down", &up.0]).status.success());
    let gone = wan(&["status", &up.0]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("no link of the name"), "{gone:?}");
}

#[test]
fn bad_arguments_are_explained() {
    for (arguments, word) in [
        (&["status", "nobody"][..], "no link of the name nobody"),
        (&["status", "../x"], "no name for a link"),
        (&["up", "--rtt", "soon"], "does not begin with a number"),
        (&["up", "--rate", "1GB"], "kbit, mbit or gbit"),
        (&["set", "nobody"], "--rtt"),
    ] {
        let output = wan(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && words.contains(word), "{arguments:?}: {words}");
    }
}
