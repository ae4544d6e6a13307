//! A headless Chromium for tests of pages: opened, typed into, looked at.
//!
//! A page that was only fetched has not been tested. Here a test sees what a person would: it waits
//! until something is on the page, clicks, types, and takes pictures. Driven through the browser's
//! debugging pipe: no port to be free, no driver to be installed beside it.
//!
//! Needs `chromium` on the path. Where there is none [`Browser::start`] says so, and the test skips;
//! under `cargo xtask test` that found or installed one, [`REQUIRED`] is set and it fails instead.
//!
//! # Source
//! The Chrome DevTools Protocol, <https://chromedevtools.github.io/devtools-protocol/>.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The variable by which `cargo xtask test` says that a browser must be there.
pub const REQUIRED: &str = "PURLIN_BROWSER_REQUIRED";

/// How long anything may take before it counts as failed: machines under load are slow.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a page is asked whether something holds.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A browser of its own, with a profile of its own. Dropping it ends it.
pub struct Browser {
    child: Child,
    pipe: Arc<Pipe>,
    _profile: TempDir,
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser").field("process", &self.child.id()).finish_non_exhaustive()
    }
}

/// Why there is no browser.
#[derive(Debug)]
pub struct NoBrowser(String);

impl fmt::Display for NoBrowser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoBrowser {}

/// What the browser says, and a way to tell it something.
struct Pipe {
    stdin: Mutex<ChildStdin>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Who waits for which answer.
    waiting: Vec<(u64, Sender<Value>)>,
    /// What pages complained about, by session.
    complaints: Vec<(String, String)>,
}

impl Browser {
    /// Starts one.
    ///
    /// # Errors
    /// [`NoBrowser`] when there is none on this machine.
    ///
    /// # Panics
    /// When there must be one ([`REQUIRED`] is set), and when it is there and does not start.
    pub fn start() -> Result<Self, NoBrowser> {
        let found = Command::new("chromium").arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            let why = "no `chromium` runs here; install the package chromium".to_owned();
            assert!(std::env::var_os(REQUIRED).is_none(), "{why}, which {REQUIRED} asks for");
            return Err(NoBrowser(why));
        }
        let profile = tempfile::tempdir().expect("a temporary directory can be made");
        // It speaks on the descriptors 3 and 4, which only a shell can give it without unsafe code.
        let mut child = Command::new("sh")
            .args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-first-run"])
            // A test runs as root in containers, shows only its own pages, and has little /dev/shm.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--hide-scrollbars", "--mute-audio", "--lang=en"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell can be started");
        let stdin = child.stdin.take().expect("stdin was piped above");
        let stdout = child.stdout.take().expect("stdout was piped above");
        let pipe = Arc::new(Pipe { stdin: Mutex::new(stdin), state: Mutex::default() });
        let hearing = Arc::clone(&pipe);
        thread::spawn(move || {
            for message in BufReader::new(stdout).split(0).map_while(Result::ok) {
                if let Ok(message) = serde_json::from_slice(&message) {
                    hearing.hear(message);
                }
            }
            // Nobody answers any more: whoever waits hears it.
            lock(&hearing.state).waiting.clear();
        });
        let browser = Self { child, pipe, _profile: profile };
        browser.pipe.call(None, "Browser.getVersion", &json!({}));
        Ok(browser)
    }

    /// Opens `url` in a page of its own and waits until it is loaded.
    ///
    /// # Panics
    /// When nothing can be loaded from there.
    #[must_use]
    pub fn open(&self, url: &str) -> Page {
        let target = self.pipe.call(None, "Target.createTarget", &json!({"url": "about:blank"}));
        let target = target["targetId"].as_str().expect("a new target has an id").to_owned();
        let attach = json!({"targetId": target, "flatten": true});
        let session = self.pipe.call(None, "Target.attachToTarget", &attach);
        let session = session["sessionId"].as_str().expect("a session has an id").to_owned();
        let page = Page { pipe: Arc::clone(&self.pipe), session };
        for domain in ["Page", "Runtime", "Log"] {
            page.call(&format!("{domain}.enable"), &json!({}));
        }
        page.go(url);
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its helpers end with it; it may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Pipe {
    fn hear(&self, message: Value) {
        let mut state = lock(&self.state);
        if let Some(id) = message["id"].as_u64() {
            if let Some(at) = state.waiting.iter().position(|(waiting, _)| *waiting == id) {
                let (_, tell) = state.waiting.swap_remove(at);
                // Who gave up waiting needs no answer.
                drop(tell.send(message));
            }
            return;
        }
        let about = &message["params"];
        let complaint = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                let details = &about["exceptionDetails"];
                let text = details["exception"]["description"].as_str();
                text.or_else(|| details["text"].as_str()).map(str::to_owned)
            }
            Some("Runtime.consoleAPICalled") if about["type"] == "error" => {
                Some(about["args"].to_string())
            }
            Some("Log.entryAdded") if about["entry"]["level"] == "error" => {
                let entry = &about["entry"];
                Some(format!("{} {}", entry["text"], entry["url"]))
            }
            _ => None,
        };
        if let Some(complaint) = complaint {
            let session = message["sessionId"].as_str().unwrap_or_default().to_owned();
            state.complaints.push((session, complaint));
        }
    }

    fn call(&self, session: Option<&str>, method: &str, params: &Value) -> Value {
        let answer = self.ask(session, method, params);
        let mut answer = answer.unwrap_or_else(|why| panic!("{method}: {why}"));
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].take()
    }

    fn ask(&self, session: Option<&str>, method: &str, params: &Value) -> Result<Value, String> {
        let (tell, told): (_, Receiver<Value>) = channel();
        let id = {
            let mut state = lock(&self.state);
            state.next += 1;
            let id = state.next;
            state.waiting.push((id, tell));
            id
        };
        let mut message = json!({"id": id, "method": method, "params": params});
        if let Some(session) = session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        let mut stdin = lock(&self.stdin);
        stdin.write_all(&bytes).map_err(|error| format!("the browser has ended: {error}"))?;
        drop(stdin);
        told.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("no answer within {PATIENCE:?}"),
            RecvTimeoutError::Disconnected => "the browser has ended".to_owned(),
        })
    }
}

/// A page in a browser.
pub struct Page {
    pipe: Arc<Pipe>,
    session: String,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("session", &self.session).finish_non_exhaustive()
    }
}

impl Page {
    fn call(&self, method: &str, params: &Value) -> Value {
        self.pipe.call(Some(&self.session), method, params)
    }

    /// Goes to `url` and waits until it is loaded.
    ///
    /// # Panics
    /// When nothing can be loaded from there.
    pub fn go(&self, url: &str) {
        let went = self.call("Page.navigate", &json!({"url": url}));
        assert!(went["errorText"].is_null(), "{url}: {}", went["errorText"]);
        self.until(&format!("{url} is loaded"), "document.readyState === 'complete'");
    }

    /// What the expression `script` is; a promise is waited for.
    ///
    /// # Panics
    /// When it throws.
    #[must_use]
    pub fn eval(&self, script: &str) -> Value {
        self.try_eval(script).unwrap_or_else(|why| panic!("{script}: {why}"))
    }

    /// As [`Page::eval`]; an error when the page went elsewhere meanwhile.
    fn try_eval(&self, script: &str) -> Result<Value, String> {
        let params = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.pipe.ask(Some(&self.session), "Runtime.evaluate", &params);
        let mut answer = answer.unwrap_or_else(|why| panic!("{script}: {why}"));
        if !answer["error"].is_null() {
            return Err(answer["error"].to_string());
        }
        let mut done = answer["result"].take();
        let thrown = &done["exceptionDetails"];
        assert!(thrown.is_null(), "{script}: {}", thrown["exception"]["description"]);
        Ok(done["result"]["value"].take())
    }

    /// Waits until the expression `script` is true, for a minute.
    ///
    /// # Panics
    /// When it never was; the text of the page is shown.
    pub fn until(&self, what: &str, script: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.try_eval(&format!("Boolean({script})")) != Ok(json!(true)) {
            assert!(
                Instant::now() < deadline,
                "waited in vain until {what}; the page says:\n{}\nit complained of {:?}",
                self.text(),
                self.complaints()
            );
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the text of what `selector` finds contains `text`.
    ///
    /// # Panics
    /// When it never did.
    pub fn sees(&self, selector: &str, text: &str) {
        self.until(&format!("{selector} says {text:?}"), &says(selector, text));
    }

    /// Whether the text of what `selector` finds contains `text` now.
    #[must_use]
    pub fn shows(&self, selector: &str, text: &str) -> bool {
        self.try_eval(&says(selector, text)) == Ok(json!(true))
    }

    /// Waits until the text of what `selector` finds does not contain `text`.
    ///
    /// # Panics
    /// When it always did.
    pub fn sees_no(&self, selector: &str, text: &str) {
        let script = format!("!({})", says(selector, text));
        self.until(&format!("{selector} no longer says {text:?}"), &script);
    }

    /// Clicks what `selector` finds, once it is there.
    ///
    /// # Panics
    /// When it never is.
    pub fn click(&self, selector: &str) {
        let found = format!("document.querySelector({})", json!(selector));
        self.until(&format!("{selector} is there"), &found);
        drop(self.eval(&format!("{found}.click()")));
    }

    /// Types `text` into what `selector` finds, as a keyboard would.
    ///
    /// # Panics
    /// When it is never there.
    pub fn types(&self, selector: &str, text: &str) {
        let found = format!("document.querySelector({})", json!(selector));
        self.until(&format!("{selector} is there"), &found);
        drop(self.eval(&format!("{{ const it = {found}; it.focus(); it.select?.(); }}")));
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Presses Enter where the keyboard is.
    pub fn enter(&self) {
        for kind in ["keyDown", "keyUp"] {
            let key = json!({
                "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
                "windowsVirtualKeyCode": 13,
            });
            self.call("Input.dispatchKeyEvent", &key);
        }
    }

    /// All text that is shown.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.eval("document.body?.innerText ?? ''");
        text.as_str().unwrap_or_default().to_owned()
    }

    /// What the page complained of so far: exceptions, errors on its console, what did not load.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let state = lock(&self.pipe.state);
        let mine = state.complaints.iter().filter(|(session, _)| *session == self.session);
        mine.map(|(_, complaint)| complaint.clone()).collect()
    }

    /// Shows it as wide and high as that, in dark or light colours.
    pub fn show(&self, width: u32, height: u32, dark: bool) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({"features": [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]});
        self.call("Emulation.setEmulatedMedia", &features);
    }

    /// Whether nothing sticks out to the right: no scrolling sideways.
    #[must_use]
    pub fn fits(&self) -> bool {
        self.eval("document.documentElement.scrollWidth <= innerWidth") == json!(true)
    }

    /// Takes a picture of the whole page into the PNG file `path`.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn picture(&self, path: &Path) {
        let shot = self.call(
            "Page.captureScreenshot",
            &json!({"format": "png", "captureBeyondViewport": true}),
        );
        let bytes = base64(shot["data"].as_str().unwrap_or_default());
        fs::write(path, bytes).expect("a picture can be written");
    }
}

/// The expression that is true while the text of what `selector` finds contains `text`.
fn says(selector: &str, text: &str) -> String {
    let found = format!("document.querySelector({})", json!(selector));
    format!("Boolean({found}?.innerText.includes({}))", json!(text))
}

/// The bytes of base64 with padding.
fn base64(text: &str) -> Vec<u8> {
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for sextet in text.bytes().filter_map(sextet) {
        held = held << 6 | u32::from(sextet);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A test that failed elsewhere has left it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_and_without_padding() {
        assert_eq!(base64("cHVybGlu"), b"purlin");
        assert_eq!(base64("cHVybGk="), b"purli");
        assert_eq!(base64("cHVybA=="), b"purl");
    }

    #[test]
    fn a_page_is_read_typed_into_and_pictured_and_its_complaints_are_heard() {
        let browser = match Browser::start() {
            Ok(browser) => browser,
            Err(why) => return println!("skipped: {why}"),
        };
        let html = "<p id=said></p><form><input id=box></form><script>\
            document.forms[0].onsubmit = (e) => { e.preventDefault(); said.innerText = box.value; };\
            setTimeout(() => nobody(), 0);</script>";
        let page = browser.open(&format!("data:text/html,{}", html.replace('#', "%23")));
        page.types("#box", "hello");
        page.enter();
        page.sees("#said", "hello");
        page.sees_no("#said", "bye");
        let deadline = Instant::now() + PATIENCE;
        while !page.complaints().iter().any(|it| it.contains("nobody is not defined")) {
            assert!(Instant::now() < deadline, "{:?}", page.complaints());
            thread::sleep(LOOK_EVERY);
        }
        page.show(400, 300, true);
        assert!(page.fits());
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let file = folder.path().join("page.png");
        page.picture(&file);
        assert!(fs::read(&file).expect("it was written").starts_with(b"\x89PNG"));
    }
}
