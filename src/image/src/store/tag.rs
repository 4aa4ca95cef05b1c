//! Giving an image of the store another name.

use super::Store;
use super::state::NameRecord;
use crate::reference::Kind;
use crate::{Digest, Error, Reference, Result};

impl Store {
    /// Gives the image that `source` names, or is the id of, the name `target` as well. Another image
    /// that had it loses it.
    ///
    /// # Errors
    /// Where there is no such image, or `target` is not a name with a tag.
    pub fn tag(&self, source: &Reference, target: &Reference) -> Result<Digest> {
        check_name(target)?;
        let missing = || Error::NotFound(source.to_string());
        let image = self.find(source)?.ok_or_else(missing)?.id;
        self.give(image, std::slice::from_ref(target))?;
        Ok(image)
    }

    /// Gives an image of the store names.
    pub(super) fn give(&self, image: Digest, names: &[Reference]) -> Result<()> {
        let _lock = self.lock()?;
        let mut state = self.state()?;
        if !state.images.contains_key(&image) {
            return Err(Error::NotFound(image.to_string()));
        }
        for name in names {
            let record = NameRecord {
                image,
                stamp: None,
                digest: None,
            };
            state.give(name.to_string(), record);
        }
        state.save(&self.state_path())
    }
}

/// Whether it is a name that can be given: one that a registry could have, and not by digest.
pub(super) fn check_name(reference: &Reference) -> Result<()> {
    match &reference.0 {
        Kind::Registry(name) if name.digest.is_none() => Ok(()),
        _ => Err(Error::NotATag(reference.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_fixture::Fixture;
    use super::*;
    use crate::source::test_image::{Packed, layer};

    #[test]
    fn an_image_has_as_many_names_as_it_is_given() {
        let mut fixture = Fixture::new();
        let one = fixture
            .layout
            .image("one", &[layer("a", "1")], Packed::Gzip);
        let two = fixture
            .layout
            .image("two", &[layer("a", "2")], Packed::Gzip);
        fixture.pull("one").unwrap();
        fixture.pull("two").unwrap();
        let store = &fixture.store;
        let name: Reference = "127.0.0.1:5000/x/y".parse().unwrap();
        assert_eq!(store.tag(&fixture.reference("one"), &name).unwrap(), one);
        assert_eq!(store.find(&name).unwrap().unwrap().id, one);
        // By id, over a name that is there.
        let short: Reference = two.short().parse().unwrap();
        assert_eq!(store.tag(&short, &name).unwrap(), two);
        assert_eq!(store.find(&name).unwrap().unwrap().id, two);
        let removed = store.remove(&fixture.reference("two").to_string(), false, &|_| {
            Vec::new()
        });
        assert!(removed.unwrap().deleted.is_empty());

        let missing = store.tag(&"nothing".parse().unwrap(), &name).unwrap_err();
        assert!(matches!(missing, Error::NotFound(_)));
        let pinned = format!("x@{one}");
        for bad in [pinned.as_str(), "oci:/x", &one.to_string()] {
            let error = store.tag(&name, &bad.parse().unwrap()).unwrap_err();
            assert!(matches!(error, Error::NotATag(_)), "{bad}");
        }
    }
}
