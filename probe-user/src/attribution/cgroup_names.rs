//! From the path of a control group to the name of an owner.

/// Ends of the names of units that hold processes.
const UNITS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The name of an owner: its container or else its unit, the innermost, or else
/// the last part of the path. `None` for `/`, which belongs to nobody.
pub fn owner(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let last = parts.last()?;
    let container = (0..parts.len()).rev().find_map(|n| {
        let above = n.checked_sub(1).map_or("", |above| parts[above]);
        container(parts[n], above)
    });
    let unit = || {
        let is_unit = |part: &&&str| UNITS.iter().any(|end| part.ends_with(end));
        parts
            .iter()
            .rev()
            .find(is_unit)
            .map(|unit| (*unit).to_owned())
    };
    Some(
        container
            .or_else(unit)
            .unwrap_or_else(|| (*last).to_owned()),
    )
}

/// The name of a container's own control group.
fn container(part: &str, above: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    if let Some((engine, id)) = name.rsplit_once('-')
        && is_hex(id)
    {
        return Some(format!("{engine}-{}", &id[..12]));
    }
    if is_hex(name) {
        let engine = if above == "docker" {
            above
        } else {
            "container"
        };
        return Some(format!("{engine}-{}", &name[..12]));
    }
    let (allocation, task) = name.split_once('.').filter(|_| name != part)?;
    is_uuid(allocation).then(|| format!("nomad-{}-{task}", &allocation[..8]))
}

/// The identifier of a container: 64 hexadecimal digits.
fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12]
        && text
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn owners_have_short_names() {
        for (path, name) in [
            ("/", None),
            ("", None),
            ("/system.slice/nginx.service", Some("nginx.service")),
            ("/system.slice/docker.service/below", Some("docker.service")),
            (
                "/user.slice/user-0.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            ("/system.slice/sshd.socket", Some("sshd.socket")),
            ("/user.slice", Some("user.slice")),
            ("/mine/of/my/own", Some("own")),
            (
                "/system.slice/docker-HEX.scope",
                Some("docker-0123456789ab"),
            ),
            ("/docker/HEX", Some("docker-0123456789ab")),
            ("/docker/HEX/init.scope", Some("docker-0123456789ab")),
            (
                "/kubepods/burstable/pod1/HEX",
                Some("container-0123456789ab"),
            ),
            (
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-HEX.scope",
                Some("cri-containerd-0123456789ab"),
            ),
            ("/kubepods.slice/crio-HEX.scope", Some("crio-0123456789ab")),
            (
                "/machine.slice/libpod-HEX.scope/container",
                Some("libpod-0123456789ab"),
            ),
            (
                "/nomad.slice/share.slice/8f3a1c2b-0000-4000-8000-0123456789ab.web.scope",
                Some("nomad-8f3a1c2b-web"),
            ),
            (
                "/nomad.slice/8f3a1c2b-0000-4000-8000-0123456789ab.a.b.scope",
                Some("nomad-8f3a1c2b-a.b"),
            ),
            (
                "/x/8f3a1c2b-0000-4000-8000-0123456789ab",
                Some("8f3a1c2b-0000-4000-8000-0123456789ab"),
            ),
            ("/docker/short", Some("short")),
        ] {
            let path = path.replace("HEX", HEX);
            assert_eq!(owner(&path).as_deref(), name, "{path}");
        }
    }
}
