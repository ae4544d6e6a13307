//! `purlin ping NODE`: a round trip from the contacted node to a member and back.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    args::PingArgs,
    client::{Client, segment},
    exit::{Done, Failure},
    output::{Output, human_micros},
};

#[derive(Debug, Serialize, Deserialize)]
struct Pong {
    node: String,
    incarnation: u64,
    rtt_us: u64,
}

pub(crate) async fn ping(client: &Client, args: &PingArgs, output: &mut Output) -> Done {
    let mut worst = Ok(());
    for round in 0..args.count {
        if round > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let path = format!("/v1/ping/{}", segment(&args.member));
        match client.get::<Pong>(&path).await {
            Ok(pong) if output.is_json() => output.json(&pong)?,
            Ok(pong) => {
                output.line(&format!(
                    "{}@{} answered in {}",
                    pong.node,
                    pong.incarnation,
                    human_micros(pong.rtt_us)
                ))?;
            }
            // One lost ping of several is a result, not the end.
            Err(failure @ (Failure::Unknown(_) | Failure::NotDone(_))) if args.count > 1 => {
                output.note(failure.text().unwrap_or_default());
                worst = Err(failure);
            }
            Err(failure) => return Err(failure),
        }
        output.flush()?;
    }
    worst
}
