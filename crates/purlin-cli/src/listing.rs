//! Listings that come in pages.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    client::{Client, segment},
    exit::Done,
    output::{Output, Tone, table},
};

/// One line of a table.
pub(crate) type Row = Vec<(Tone, String)>;

/// A page of a listing, as the API gives it.
pub(crate) trait Page: Serialize + DeserializeOwned {
    /// Where the next page begins; `None` when there is none.
    fn next(&self) -> Option<&str>;

    /// Whether there is more than this and no page to ask for.
    fn is_cut_short(&self) -> bool {
        false
    }

    fn rows(&self) -> Vec<Row>;
}

/// Prints all pages of `path`, which ends in a query: under `head` as one table, or each as JSON.
pub(crate) async fn list<P: Page>(
    client: &Client,
    path: &str,
    head: &[&str],
    output: &mut Output,
) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    loop {
        let page: P = client.get(&format!("{path}{after}")).await?;
        if output.is_json() {
            output.json(&page)?;
        } else {
            rows.extend(page.rows());
        }
        if let Some(next) = page.next() {
            after = format!("&after={}", segment(next));
            continue;
        }
        if page.is_cut_short() {
            output.note("there are more than these");
        }
        return if output.is_json() { Ok(()) } else { table(head, &rows, output) };
    }
}
