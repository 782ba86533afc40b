//! Which families a client asked for.

use super::family::Metadata;

/// The most names that are read from a query.
const MAX_NAMES: usize = 256;

/// All families, or those that `name[]` parameters select, as in client_golang's endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FamilyFilter(Option<Vec<String>>);

impl FamilyFilter {
    /// All families.
    pub fn all() -> Self {
        Self(None)
    }

    /// What the query of a URL selects: the families named by its `name[]` parameters, or all families if it has
    /// none. Other parameters are ignored, and so are names after the 256th.
    ///
    /// A family is named as in the classic text (`messages_received_total`) or as in OpenMetrics
    /// (`messages_received`).
    pub fn from_query(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let names = pairs.filter(|(key, _)| decoded(key) == "name[]").map(|(_, name)| decoded(name));
        let names: Vec<String> = names.take(MAX_NAMES).collect();
        Self((!names.is_empty()).then_some(names))
    }

    pub(super) fn includes(&self, family: &Metadata) -> bool {
        self.0.as_ref().is_none_or(|names| names.iter().any(|name| *name == *family.name || *name == *family.sample))
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_a_query_as_browsers_and_prometheus_write_them() {
        let names = |query| FamilyFilter::from_query(Some(query)).0;
        assert_eq!(names("name[]=up&name[]=down"), Some(vec!["up".into(), "down".into()]));
        assert_eq!(names("x=1&name%5B%5D=u%70&name"), Some(vec!["up".into()]));
        assert_eq!(names("name[]="), Some(vec![String::new()]));
        assert_eq!(names("name=up&x"), None);
        assert_eq!(names(""), None);
        assert_eq!(names(&"name[]=x&".repeat(1_000)).unwrap().len(), MAX_NAMES);
        assert_eq!(FamilyFilter::from_query(None), FamilyFilter::all());
    }
}
