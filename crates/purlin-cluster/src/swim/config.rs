//! What the failure detector trades: speed against traffic against false alarms.

use std::time::Duration;

/// Settings of the failure detector before they are checked; start from [`Config::lan`] or
/// [`Config::wan`] and change what you must.
///
/// Every node of a cluster should use the same values: the detector works with mixed ones, but
/// the slowest node then sets how soon a silent member is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigBuilder {
    /// How often this node probes one other member. Halving it doubles idle traffic and nearly
    /// halves detection. Sane: 100 ms to 5 s. Small clusters (up to [`SMALL_CLUSTER`] members)
    /// probe twice as often, because traffic is no concern there. Default `lan`: measured, the
    /// longest that keeps 128 nodes under 3 s.
    pub probe_interval: Duration,
    /// How long the first ping of a probe waits before it is repeated; a whole probe takes five
    /// times this. Stretched by the member's measured round trip and by local health. Must be at
    /// most `probe_interval`. Default: guess, 100 times a LAN round trip.
    pub ack_timeout: Duration,
    /// How many other members are asked, twice per probe, to ping a silent one on our behalf.
    /// Sane: 1 to 8. Default: SWIM §4.1 uses small k; measured at 25 % loss.
    pub helpers: usize,
    /// The least time a suspect has to refute when enough others confirm its silence. Below
    /// three times `ack_timeout` a loaded node cannot answer in time, so that is refused.
    pub suspicion_min: Duration,
    /// How many independent confirmations shrink the suspicion to `suspicion_min`
    /// (Lifeguard §IV-B). More make false verdicts rarer and detection slower.
    pub confirmations: usize,
    /// How often news travels on its own when there is any. Idle clusters send none.
    pub gossip_interval: Duration,
    /// To how many random members news is sent per `gossip_interval`.
    pub gossip_fanout: usize,
    /// How often the whole state is compared with one random member over the control channel.
    /// Equal states cost one small frame.
    pub sync_interval: Duration,
    /// The first pause before a down member is contacted again; doubles up to `recontact_max`.
    pub recontact_min: Duration,
    /// The longest pause between two contacts to a down member: bounds how long a healed
    /// partition goes unnoticed. At most 10 s.
    pub recontact_max: Duration,
    /// How long a down member stays in the view and is contacted again.
    pub forget_down_after: Duration,
    /// How long a member that left stays in the view. Its name stays barred for that incarnation
    /// much longer, see [`TOMBSTONES_MAX`].
    pub forget_left_after: Duration,
    /// The most members a node keeps; newcomers beyond it are refused and counted.
    pub members_max: usize,
    /// The largest datagram payload the core produces, before sealing. 400 to
    /// [`purlin_net::DATAGRAM_PAYLOAD_BYTES_MAX`], the default.
    pub datagram_bytes_max: usize,
    /// A wake-up this much later than asked for means this process stood still: the lost time
    /// is not held against other members.
    pub stall_tolerance: Duration,
}

/// Clusters up to this many members probe at half the [`ConfigBuilder::probe_interval`].
pub const SMALL_CLUSTER: usize = 8;
/// How many barred incarnations are remembered after their members were forgotten. At the bound
/// the oldest is dropped.
pub const TOMBSTONES_MAX: usize = 4_096;
/// The most a local health score can stretch timeouts: by this plus one.
pub const LOCAL_HEALTH_MAX: u32 = 4;

/// Checked settings of the failure detector.
///
/// ```
/// use purlin_cluster::swim::Config;
/// let config = Config::lan().build()?;
/// let mut slow = Config::wan();
/// slow.helpers = 5;
/// let slow = slow.build()?;
/// assert!(slow.settings().probe_interval > config.settings().probe_interval);
/// # Ok::<(), purlin_cluster::swim::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config(ConfigBuilder);

/// Which setting is out of bounds. Nothing was started; the text names the field and the bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number or duration lies outside its range.
    #[error("membership setting {field} = {value} is outside {min} to {max}")]
    OutOfRange {
        /// The setting.
        field: &'static str,
        /// What it was set to.
        value: String,
        /// The smallest allowed value.
        min: String,
        /// The largest allowed value.
        max: String,
    },
}

fn within<T: PartialOrd + std::fmt::Debug>(
    field: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), ConfigError> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(ConfigError::OutOfRange {
        field,
        value: format!("{value:?}"),
        min: format!("{min:?}"),
        max: format!("{max:?}"),
    })
}

impl Config {
    /// One data centre: a silent node is down in 1 to 2 s, at about 400 B/s per node.
    #[must_use]
    pub fn lan() -> ConfigBuilder {
        ConfigBuilder {
            probe_interval: Duration::from_millis(500),
            ack_timeout: Duration::from_millis(100),
            helpers: 3,
            suspicion_min: Duration::from_millis(600),
            confirmations: 3,
            gossip_interval: Duration::from_millis(100),
            gossip_fanout: 3,
            sync_interval: Duration::from_secs(30),
            recontact_min: Duration::from_millis(500),
            recontact_max: Duration::from_secs(2),
            forget_down_after: Duration::from_secs(24 * 60 * 60),
            forget_left_after: Duration::from_secs(10 * 60),
            members_max: 4_096,
            datagram_bytes_max: purlin_net::DATAGRAM_PAYLOAD_BYTES_MAX,
            stall_tolerance: Duration::from_millis(100),
        }
    }

    /// Regions far apart: a silent node is down in 4 to 8 s; bears round trips of 400 ms.
    #[must_use]
    pub fn wan() -> ConfigBuilder {
        ConfigBuilder {
            probe_interval: Duration::from_millis(1_500),
            ack_timeout: Duration::from_millis(500),
            suspicion_min: Duration::from_millis(2_500),
            gossip_interval: Duration::from_millis(250),
            stall_tolerance: Duration::from_millis(300),
            ..Self::lan()
        }
    }

    /// The values in force.
    #[must_use]
    pub fn settings(&self) -> &ConfigBuilder {
        &self.0
    }
}

impl ConfigBuilder {
    /// Checks every value and freezes them.
    ///
    /// # Errors
    /// [`ConfigError::OutOfRange`] names the first field outside its bounds, with the bounds.
    pub fn build(self) -> Result<Config, ConfigError> {
        let ms = Duration::from_millis;
        let s = Duration::from_secs;
        within("probe_interval", self.probe_interval, ms(20), s(60))?;
        within("ack_timeout", self.ack_timeout, ms(5), self.probe_interval)?;
        within("helpers", self.helpers, 1, 8)?;
        within("suspicion_min", self.suspicion_min, self.ack_timeout * 3, s(300))?;
        within("confirmations", self.confirmations, 1, 5)?;
        within("gossip_interval", self.gossip_interval, ms(10), s(10))?;
        within("gossip_fanout", self.gossip_fanout, 1, 16)?;
        within("sync_interval", self.sync_interval, s(1), s(3_600))?;
        within("recontact_min", self.recontact_min, ms(50), s(10))?;
        within("recontact_max", self.recontact_max, self.recontact_min, s(10))?;
        within("forget_down_after", self.forget_down_after, s(10), s(30 * 86_400))?;
        within("forget_left_after", self.forget_left_after, s(1), s(30 * 86_400))?;
        within("members_max", self.members_max, 1, 65_536)?;
        let datagram_max = purlin_net::DATAGRAM_PAYLOAD_BYTES_MAX;
        within("datagram_bytes_max", self.datagram_bytes_max, 400, datagram_max)?;
        within("stall_tolerance", self.stall_tolerance, ms(5), s(60))?;
        Ok(Config(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_within_their_own_bounds() {
        assert!(Config::lan().build().is_ok());
        assert!(Config::wan().build().is_ok());
    }

    #[test]
    fn a_setting_out_of_bounds_is_named_with_value_and_bound() {
        let mut config = Config::lan();
        config.helpers = 9;
        assert_eq!(
            config.build().unwrap_err().to_string(),
            "membership setting helpers = 9 is outside 1 to 8"
        );
        let mut config = Config::lan();
        config.suspicion_min = Duration::from_millis(10);
        assert!(config.build().unwrap_err().to_string().contains("suspicion_min = 10ms"));
    }
}
