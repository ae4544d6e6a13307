//! The console's stream: one shared sampler while anybody watches, nothing otherwise.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use purlin_cluster::view::Watch;
use purlin_replica::Change;
use tokio::sync::{broadcast, watch};

use crate::{
    app::{App, StreamPlace},
    shapes::{FlagsChanged, LinksReport, MembersReport, NodeReport, StateReport, TopicsReport},
    sse::{Frames, Next, Source},
    timeline::TimelineReader,
};

/// How often a watched node looks at itself. Membership changes do not wait for it.
const EVERY: Duration = Duration::from_secs(1);

/// One look at everything that changes without telling.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    node: NodeReport,
    links: LinksReport,
    topics: TopicsReport,
    state: StateReport,
}

/// Samples while there are watchers. Ten consoles cost one round of questions per second.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    samples: watch::Sender<Option<Arc<Sample>>>,
    is_running: Arc<Mutex<bool>>,
}

impl Sampler {
    fn watch(&self, app: &Arc<App>) -> watch::Receiver<Option<Arc<Sample>>> {
        let mut is_running = self.is_running.lock();
        let mut samples = self.samples.subscribe();
        // A late watcher starts with the last sample instead of an empty page.
        samples.mark_changed();
        if !*is_running {
            *is_running = true;
            tokio::spawn(sample(Arc::clone(app)));
        }
        samples
    }

    /// Whether the last watcher has gone; the sampling task then ends.
    fn is_over(&self) -> bool {
        let mut is_running = self.is_running.lock();
        *is_running = self.samples.receiver_count() > 0;
        !*is_running
    }
}

async fn sample(app: Arc<App>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = app.closing.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if app.sampler.is_over() {
            app.sampler.samples.send_replace(None);
            return;
        }
        let links = app.host.links_report().await;
        let sample = Sample {
            node: app.host.node_report(app.process_cost()),
            links,
            topics: app.host.topics_report(),
            state: app.host.state_report(),
        };
        app.sampler.samples.send_replace(Some(Arc::new(sample)));
    }
}

/// One watcher.
pub(crate) struct LiveSource {
    app: Arc<App>,
    reader: TimelineReader,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    views: Watch,
    sent_members: Option<MembersReport>,
    sent_links: Option<LinksReport>,
    sent_state: Option<StateReport>,
    flags: broadcast::Receiver<Change>,
    is_begun: bool,
    _place: StreamPlace,
}

impl LiveSource {
    pub(crate) fn new(app: &Arc<App>, reader: TimelineReader, place: StreamPlace) -> Self {
        Self {
            reader,
            samples: app.sampler.watch(app),
            views: app.host.view_changes(),
            app: Arc::clone(app),
            sent_members: None,
            sent_links: None,
            sent_state: None,
            flags: app.host.flags().set().watch(),
            is_begun: false,
            _place: place,
        }
    }

    fn write_members(&mut self, frames: &mut Frames) {
        let members = self.app.host.members_report();
        if self.sent_members.as_ref() != Some(&members) {
            frames.json("members", None, &members);
            self.sent_members = Some(members);
        }
    }

    /// Says that flags changed, once for all changes that came together.
    fn write_flags(&mut self, frames: &mut Frames) {
        self.flags = self.flags.resubscribe();
        let changes = self.app.host.flags().set().changes();
        frames.json("flags", None, &FlagsChanged { changes });
    }

    fn write_sample(&mut self, frames: &mut Frames) {
        let Some(sample) = self.samples.borrow_and_update().clone() else { return };
        frames.json("node", None, &sample.node);
        frames.json("topics", None, &sample.topics);
        if self.sent_links.as_ref() != Some(&sample.links) {
            frames.json("links", None, &sample.links);
            self.sent_links = Some(sample.links.clone());
        }
        if self.sent_state.as_ref() != Some(&sample.state) {
            frames.json("state", None, &sample.state);
            self.sent_state = Some(sample.state.clone());
        }
    }
}

impl Source for LiveSource {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        if !self.is_begun {
            self.is_begun = true;
            frames.json("node", None, &self.app.host.node_report(self.app.process_cost()));
        }
        self.write_members(frames);
        self.reader.write(frames, Some("event"));
        while frames.is_empty() {
            tokio::select! {
                // None of these comes so often that another has to wait.
                biased;
                _ = self.views.changed() => {}
                changed = self.flags.recv() => {
                    // Missed ones count like any other: the console reads the flags again.
                    if matches!(changed, Err(broadcast::error::RecvError::Closed)) {
                        std::future::pending::<()>().await;
                    }
                    self.write_flags(frames);
                }
                next = self.reader.next() => self.reader.write_one(frames, Some("event"), next),
                changed = self.samples.changed() => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                    self.write_sample(frames);
                }
            }
            self.write_members(frames);
        }
        Next::More
    }
}
