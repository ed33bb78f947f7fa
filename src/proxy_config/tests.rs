use super::*;
use crate::report::error_text;

const GOOD: &str = r#"
name = "lan"
listen = ["10.0.0.5:7049", "unix:/run/lan.sock"]
listen_keyless = "127.0.0.1:2049"
key_file = "/etc/gridvfs/lan.keys"
socket_mode = "0660"
clients_max = 32
memory_max = "64M"

[export.golden]
source = "vm@state:/vms/golden"
read_only = true
cache_size = "20G"
consistency = "read-only-shared"
rules = ["*.iso:none", "{a,b}/*:whole"]
ssh = { Port = 2222 }

[export.home]
source = "gridvfs://far:7049/home"
key_file = "/etc/gridvfs/far.key"
write_policy = "write-back"
writeback_delay = 0.5

[identity]
map_uid = ["1000-1999:51000"]
map_gid = ["100:500"]

[key.alice]
exports = ["home"]
unmapped = "squash"
map_uid = ["1000:51000"]

[keyless]
exports = ["golden"]
read_only = true
"#;

fn config(text: &str) -> Result<ProxyConfig> {
    ProxyConfig::from_toml(text, "file")
}

#[test]
fn what_the_file_says_is_understood() {
    let config = config(GOOD).expect("good");
    assert_eq!((&*config.name, config.socket_mode), ("lan", 0o660));
    assert_eq!(config.limits.clients_max, 32);
    assert_eq!(config.limits.memory_max_bytes, 64 << 20);
    assert_eq!(config.limits.calls_max, Limits::default().calls_max);
    let keyless: Vec<_> = config.listen.iter().filter(|at| at.keyless).collect();
    assert_eq!(keyless.len(), 1);
    let golden = &config.exports["golden"];
    assert!(golden.settings.read_only);
    assert_eq!(golden.settings.ssh_words().expect("good"), ["ssh", "-o", "Port=2222"]);
    let settings = golden.settings.cache.settings().expect("good");
    assert_eq!(settings.rules.len(), 2);
    let home = &config.exports["home"];
    assert_eq!(home.settings.key_file.as_deref(), Some(Path::new("/etc/gridvfs/far.key")));
    let alice = &config.keys["alice"];
    assert_eq!(alice.exports.as_deref(), Some(&["home".to_string()][..]));
    let table = alice.table.as_ref().expect("a table");
    assert_eq!((table.squash_to, table.map_gid.len()), (Some((65534, 65534)), 0));
    assert_eq!(config.others.table.as_ref().expect("a table").squash_to, None);
    assert!(config.keyless.read_only && config.keyless.table == config.others.table);
}

#[test]
fn what_is_wrong_is_named_with_where_it_stands() {
    let least = "listen_keyless = \"127.0.0.1:1\"\n[export.a]\nsource = \"/a\"\n";
    assert!(config(least).is_ok());
    for (text, words) in [
        ("listen = ", "line 1"),
        ("lissten = []", "did you mean listen?"),
        ("listen = [\"127.0.0.1:1\"]", "key_file is missing"),
        ("", "an address is missing"),
        ("listen_keyless = \"127.0.0.1:1\"", "0 exports"),
        (&format!("{least}cache_sizze = \"1G\""), "did you mean cache_size?"),
        (&format!("{least}cache_size = \"many\""), "[export.a]"),
        (&format!("{least}allow_other = true"), "allow_other is for a mount"),
        (&format!("{least}nosuid = true"), "nosuid is for a mount"),
        (&format!("{least}zzzzzzzzz = 1"), "unknown key"),
        (&format!("{least}[export.b]\ncache = \"off\""), "[export.b]: source is missing"),
        (&format!("{least}[export.b]\nsource = \"b\""), "b is no source"),
        (&format!("{least}[key.x]\nexports = [\"b\"]"), "there is no [export.b]"),
        (&format!("{least}[key.x]\nmap_uidd = []"), "did you mean map_uid?"),
        (&format!("{least}[key.x]\nmap_uid = [\"1:0\"]"), "act as root"),
        (&format!("{least}[identity]\nmap_uid = [\"1-3:5\", \"2:9\"]"), "1-3:5 and 2:9 overlap"),
        (&format!("{least}[identity]\nunmapped = \"squash\""), "go with map_uid"),
        (&format!("{least}[identity]\nexports = [\"a\"]"), "unknown key"),
        (&format!("clients_max = 0\n{least}"), "1 is the least"),
        (&format!("socket_mode = \"rw\"\n{least}"), "socket_mode"),
        (&format!("key_file = \"keys\"\n{least}"), "a path from /"),
    ] {
        let error = error_text(&config(text).expect_err(text));
        assert!(error.contains(words), "{text}: {error}");
    }
}
