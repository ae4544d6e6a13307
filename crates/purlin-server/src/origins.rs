//! Which node is behind a tag: stored writes carry 8 bytes for the life of a node that made them.

use std::collections::HashMap;

use parking_lot::RwLock;
use purlin_cluster::view::View;
use purlin_core::{NodeId, hlc::NodeTag};

/// How many lives are remembered; beyond that the oldest knowledge starts anew with the present
/// members.
const LIVES_MAX: usize = 65_536;

/// The lives of nodes this node has met.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    names: RwLock<HashMap<NodeTag, String>>,
}

impl Origins {
    /// Remembers who is in `view`, so that their writes can be named after they are gone.
    pub(crate) fn note(&self, view: &View) {
        let mut names = self.names.write();
        if names.len() > LIVES_MAX {
            names.clear();
        }
        for member in &view.members {
            names.insert(NodeTag::of(&member.id), member.id.name.to_string());
        }
    }

    /// The name of the node behind `tag`; the tag itself if it was never met.
    pub(crate) fn name(&self, tag: NodeTag) -> String {
        self.names.read().get(&tag).cloned().unwrap_or_else(|| format!("{:016x}", tag.0))
    }

    /// Remembers one life.
    pub(crate) fn note_one(&self, id: &NodeId) {
        self.names.write().insert(NodeTag::of(id), id.name.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_was_met_has_a_name_and_any_other_its_tag() {
        let origins = Origins::default();
        let met: NodeId = "n1@7".parse().unwrap();
        origins.note_one(&met);
        assert_eq!(origins.name(NodeTag::of(&met)), "n1");
        assert_eq!(origins.name(NodeTag(0xab)), "00000000000000ab");
    }
}
