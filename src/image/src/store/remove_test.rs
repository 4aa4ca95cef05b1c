use super::super::test_fixture::Fixture;
use super::*;
use crate::source::test_image::{Packed, layer};

#[test]
fn names_and_images_are_removed() {
    let mut fixture = Fixture::new();
    let shared = layer("a", "shared");
    let one = fixture
        .layout
        .image("one", &[shared.clone(), layer("b", "1")], Packed::Gzip);
    fixture
        .layout
        .image("two", &[shared.clone(), layer("b", "2")], Packed::Gzip);
    fixture
        .layout
        .image("same", &[shared.clone(), layer("b", "1")], Packed::Gzip);
    let names = ["one", "two", "same"].map(|tag| fixture.reference(tag).to_string());
    for tag in ["one", "two", "same"] {
        fixture.pull(tag).unwrap();
    }
    let store = &fixture.store;
    // By a name of several: only the name goes.
    let removed = store.remove(&names[0], false, &|_| Vec::new()).unwrap();
    assert_eq!(
        (removed.untagged.as_slice(), removed.freed),
        (&names[..1], 0)
    );
    assert!(removed.deleted.is_empty());
    fixture.pull("one").unwrap();
    // By id: not while there are several names, unless forced.
    let error = store
        .remove(&one.to_string(), false, &|_| Vec::new())
        .unwrap_err();
    assert!(matches!(error, Error::SeveralNames { names, .. } if names.len() == 2));
    let removed = store.remove(&one.short(), true, &|_| Vec::new()).unwrap();
    assert_eq!(
        (removed.untagged.len(), removed.deleted.as_slice()),
        (2, &[one][..])
    );
    assert!(removed.freed > 0);
    // The shared layer stays for the other image, whose last name takes it along.
    assert_eq!(fixture.disk_names().len(), 2);
    let removed = store.remove(&names[1], false, &|_| Vec::new()).unwrap();
    assert_eq!(removed.deleted.len(), 1);
    assert_eq!(fixture.files(), ["state.json"]);
    for gone in [names[1].as_str(), "cafe", "nothing/there"] {
        assert!(
            matches!(
                store.remove(gone, true, &|_| Vec::new()),
                Err(Error::NotFound(_))
            ),
            "{gone}"
        );
    }
    assert!(matches!(
        store.remove("Not A Name", true, &|_| Vec::new()),
        Err(Error::Name(..))
    ));
}

#[test]
fn what_is_in_use_stays() {
    let mut fixture = Fixture::new();
    let id = fixture
        .layout
        .image("one", &[layer("a", "1")], Packed::Gzip);
    let name = fixture.pull("one").unwrap().name;
    let other: Reference = "other".parse().unwrap();
    fixture
        .store
        .tag(&fixture.reference("one"), &other)
        .unwrap();
    let users = |user: &Digest| match *user == id {
        true => vec!["web".to_owned()],
        false => Vec::new(),
    };
    let store = &fixture.store;
    // A name of two may go.
    let removed = store.remove(&name, false, &users).unwrap();
    assert!(removed.deleted.is_empty());
    for asked in ["other".to_owned(), id.short()] {
        let error = store.remove(&asked, false, &users).unwrap_err();
        assert!(error.to_string().contains("in use by web"), "{error}");
        assert!(store.find(&other).unwrap().is_some());
    }
    assert_eq!(store.remove("other", true, &users).unwrap().deleted, [id]);
}

#[test]
fn images_are_found_by_the_start_of_their_id() {
    let mut fixture = Fixture::new();
    let mut ids = Vec::new();
    for number in 0..17 {
        let tag = format!("t{number}");
        ids.push(
            fixture
                .layout
                .image(&tag, &[layer("a", &tag)], Packed::Plain)
                .hex(),
        );
        fixture.pull(&tag).unwrap();
    }
    let find = |text: &str| fixture.store.find(&text.parse().unwrap());
    assert_eq!(find(&ids[3][..12]).unwrap().unwrap().id.hex(), ids[3]);
    assert_eq!(
        find(&format!("sha256:{}", ids[4]))
            .unwrap()
            .unwrap()
            .id
            .hex(),
        ids[4]
    );
    assert!(find(&"0".repeat(64)).unwrap().is_none());
    // Of 17 ids two start with the same digit.
    let first = |id: &String| id[..1].to_owned();
    let twice = ids.iter().map(first).find(|digit| {
        ids.iter()
            .filter(|id| id.starts_with(digit.as_str()))
            .count()
            > 1
    });
    let twice = twice.unwrap();
    assert!(matches!(find(&twice), Err(Error::Ambiguous { ids, .. }) if ids.len() > 1));
    assert!(matches!(
        fixture.store.remove(&twice, true, &|_| Vec::new()),
        Err(Error::Ambiguous { .. })
    ));
}
