//! The chat in the browser, as two people see it: two nodes, two browsers.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use purlin_browser::{Browser, Page};

/// A node with its page.
struct Chat {
    child: Child,
    address: String,
    url: String,
}

impl Chat {
    fn start(keys: &Path, name: &str, others: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chat_web"))
            // Any free ports: it says which it got.
            .args([name, "127.0.0.1:0", "127.0.0.1:0"])
            .args(others)
            .env("CHAT_KEYS", keys)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut after = |words: &str| {
            let line = lines.next().expect("it says where it is").unwrap();
            line.split_once(words).expect("where it is").1.to_owned()
        };
        let (address, url) = (after(" listens on "), after("its page is "));
        Self { child, address, url }
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        // As if its machine had lost power: no goodbye.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Says something until the other hears it: a line is for those who are known to listen.
fn says(page: &Page, line: &str, other: &Page) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !other.shows("#log", line) {
        assert!(Instant::now() < deadline, "{line:?} was never heard:\n{}", other.text());
        page.types("#line", line);
        page.enter();
        page.until("the line is taken", "document.querySelector('#line').value === ''");
        for _ in 0..20 {
            if !other.shows("#log", line) {
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn picture(page: &Page, name: &str) {
    for (width, height, dark, how) in
        [(1_000, 640, false, "light"), (1_000, 640, true, "dark"), (400, 720, false, "narrow")]
    {
        page.show(width, height, dark);
        assert!(page.fits(), "the chat sticks out at {width} px");
        if let Some(folder) = std::env::var_os("PURLIN_PICTURES") {
            page.picture(&PathBuf::from(folder).join(format!("{name}-{how}.png")));
        }
    }
}

#[test]
fn two_browsers_on_two_nodes_see_each_other_come_talk_and_go() {
    let browsers = Browser::start().and_then(|first| Ok((first, Browser::start()?)));
    let (first, second) = match browsers {
        Ok(browsers) => browsers,
        Err(why) => return println!("skipped: {why}"),
    };
    let keys = tempfile::tempdir().unwrap();
    let n1 = Chat::start(keys.path(), "n1", &[]);
    let n2 = Chat::start(keys.path(), "n2", &[&n1.address]);
    let ann = first.open(&format!("{}/?who=ann", n1.url));
    ann.sees("#status", "here, through n1");
    ann.sees("#people", "ann");
    // Bob comes by the form.
    let bob = second.open(&n2.url);
    bob.types("#who", "bob");
    bob.enter();
    for page in [&ann, &bob] {
        page.sees("#people", "bobon n2");
        page.sees("#people", "annon n1");
    }
    ann.sees("#log", "bob came");
    says(&bob, "hello ann <b>of n1</b>", &ann);
    says(&ann, "hello bob", &bob);
    picture(&ann, "chat");
    // He opens a second page, which is no news, and closes both.
    let again = second.open(&format!("{}/?who=bob", n2.url));
    again.sees("#people", "bob");
    again.go("about:blank");
    says(&bob, "still here", &ann);
    ann.sees_no("#log", "bob went");
    bob.go("about:blank");
    ann.sees("#log", "bob wentclosed the page");
    ann.sees_no("#people", "bob");
    // He is back, and his node is killed.
    bob.go(&format!("{}/?who=bob", n2.url));
    ann.sees("#people", "bob");
    drop(n2);
    ann.sees("#log", "bob wentthe node is down");
    ann.sees_no("#people", "bob");
    bob.sees("#status", "the node does not answer");
    says(&ann, "only me", &ann);
    assert_eq!(ann.complaints(), Vec::<String>::new());
}
