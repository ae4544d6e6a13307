//! `purlin sub PATTERN`: what is published, faithfully.
//!
//! Payload bytes go out as they are, one message a line. What this end cannot know it says on
//! standard error: that a connection was lost, and whether the node could take up where it was.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use serde::Deserialize;

use crate::{
    args::SubArgs,
    client::{Client, segment},
    exit::{Done, Failure},
    output::Output,
    sse::{Event, Parser},
};

const RETRY_EVERY: Duration = Duration::from_millis(250);
/// With [`RETRY_EVERY`]: about half a minute for a node to come back.
const RETRIES: u32 = 120;

/// What happens after an event was looked at.
enum Then {
    GoOn,
    /// The wanted number of messages was printed.
    Stop,
}

pub(crate) async fn subscribe(client: &Client, args: &SubArgs, output: &mut Output) -> Done {
    if args.json {
        output.want_json();
    }
    let mut subscription = Subscription { left: args.count, last_id: None, url: None, output };
    if args.count == Some(0) {
        return Ok(());
    }
    let path = format!("/v1/topics/{}/stream", segment(&args.pattern));
    let mut misses = 0;
    loop {
        match subscription.listen(client, &path, &args.pattern).await {
            Ok(Then::Stop) => return Ok(()),
            Ok(Then::GoOn) => misses = 0,
            Err(failure @ Failure::Unreachable(_))
                if subscription.url.is_some() && misses < RETRIES =>
            {
                if misses == 0 {
                    subscription.output.note(failure.text().unwrap_or_default());
                }
                misses += 1;
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

struct Subscription<'a> {
    left: Option<u64>,
    last_id: Option<String>,
    /// The node listened to last; ids are its own and mean nothing to another.
    url: Option<String>,
    output: &'a mut Output,
}

impl Subscription<'_> {
    /// Listens on one connection until it ends.
    async fn listen(
        &mut self,
        client: &Client,
        path: &str,
        pattern: &str,
    ) -> Result<Then, Failure> {
        let (endpoint, response) = client.stream(path, self.last_id.as_deref()).await?;
        let before = self.url.replace(endpoint.url.clone());
        match before {
            None => self.output.note(&format!("subscribed to {pattern} at {}", endpoint.url)),
            Some(_) => self.output.note(&format!(
                "subscribed again at {}; messages published while there was no connection may be missing",
                endpoint.url
            )),
        }
        let mut parser = Parser::default();
        let mut batch = Vec::new();
        let mut body = response.bytes_stream();
        loop {
            let chunk = match body.next().await {
                Some(Ok(chunk)) => chunk,
                Some(Err(_)) => break,
                None => break,
            };
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if let Then::Stop = self.take(event)? {
                    self.output.flush()?;
                    return Ok(Then::Stop);
                }
            }
            // Once per chunk: prompt when messages trickle, cheap when they pour.
            self.output.flush()?;
        }
        self.output.note(&format!("the connection to {} ended", endpoint.url));
        Ok(Then::GoOn)
    }

    fn take(&mut self, event: Event) -> Result<Then, Failure> {
        if event.id.is_some() {
            self.last_id.clone_from(&event.id);
        }
        match event.kind.as_str() {
            "message" => self.print(&event),
            "gap" | "lag" => {
                self.output.note(&format!("messages are missing here: {}", event.data));
                Ok(Then::GoOn)
            }
            "end" => {
                self.output.note(&format!("the node ends the stream: {}", event.data));
                Ok(Then::GoOn)
            }
            "ready" => {
                let ready: serde_json::Value =
                    serde_json::from_str(&event.data).unwrap_or_default();
                if ready["everywhere"] == false {
                    self.output.note("some nodes have not confirmed it yet: what is published there now may be missing");
                }
                Ok(Then::GoOn)
            }
            // Whatever a later release adds.
            _ => Ok(Then::GoOn),
        }
    }

    fn print(&mut self, event: &Event) -> Result<Then, Failure> {
        if self.output.is_json() {
            self.output.line(&event.data)?;
        } else {
            let unreadable = |why: &dyn std::fmt::Display| {
                Failure::NotDone(format!("cannot read a message of the stream: {why}"))
            };
            let message: Message<'_> =
                serde_json::from_str(&event.data).map_err(|error| unreadable(&error))?;
            match (message.payload, message.payload_base64) {
                (Some(text), _) => self.output.bytes_line(text.as_bytes())?,
                (None, Some(text)) => {
                    let bytes = STANDARD.decode(&*text).map_err(|error| unreadable(&error))?;
                    self.output.bytes_line(&bytes)?;
                }
                (None, None) => return Err(unreadable(&"it has no payload")),
            }
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
            if *left == 0 {
                return Ok(Then::Stop);
            }
        }
        Ok(Then::GoOn)
    }
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    payload: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    payload_base64: Option<std::borrow::Cow<'a, str>>,
}
