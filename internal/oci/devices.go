package oci

import (
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

// defaultNodes may be used by every container. The runtime makes them.
var defaultNodes = []Node{
	{Type: "c", Major: 1, Minor: 3},    // null
	{Type: "c", Major: 1, Minor: 5},    // zero
	{Type: "c", Major: 1, Minor: 7},    // full
	{Type: "c", Major: 1, Minor: 8},    // random
	{Type: "c", Major: 1, Minor: 9},    // urandom
	{Type: "c", Major: 5, Minor: 0},    // tty
	{Type: "c", Major: 5, Minor: 1},    // console
	{Type: "c", Major: 5, Minor: 2},    // ptmx
	{Type: "c", Major: 136, Minor: -1}, // pts/*
}

// devices are the nodes that a container gets beside the runtime's own, and
// what its cgroup allows.
func devices(c berth.Container, h Host) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	nodes := map[string]specs.LinuxDevice{} // by target
	rules := defaultRules(c.Security.Privileged)
	if c.Security.Privileged {
		for name, n := range h.Devices {
			if strings.HasPrefix(name, "/dev/") {
				nodes[name] = device(name, n)
			}
		}
	}
	for _, d := range c.Devices {
		access, err := permissions(d)
		if err != nil {
			return nil, nil, err
		}
		found := below(h.Devices, d)
		if len(found) == 0 {
			return nil, nil, invalid("device "+d.Source, "this host has none there")
		}
		for _, target := range slices.Sorted(maps.Keys(found)) {
			n := found[target]
			nodes[target] = device(target, n)
			if !c.Security.Privileged {
				rules = append(rules, allow(n, access))
			}
		}
	}
	var list []specs.LinuxDevice
	for _, target := range slices.Sorted(maps.Keys(nodes)) {
		list = append(list, nodes[target])
	}
	return list, rules, nil
}

// defaultRules allow everything to a privileged container. Any other may make
// any node, which it cannot open.
func defaultRules(privileged bool) []specs.LinuxDeviceCgroup {
	if privileged {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, n := range defaultNodes {
		rules = append(rules, allow(n, "rwm"))
	}
	return rules
}

// allow is the rule for one node; a negative number is any.
func allow(n Node, access string) specs.LinuxDeviceCgroup {
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Access: access}
	if n.Major >= 0 {
		rule.Major = &n.Major
	}
	if n.Minor >= 0 {
		rule.Minor = &n.Minor
	}
	return rule
}

func device(target string, n Node) specs.LinuxDevice {
	mode := n.Mode.Perm()
	return specs.LinuxDevice{Path: target, Type: n.Type, Major: n.Major, Minor: n.Minor, FileMode: &mode, UID: &n.UID, GID: &n.GID}
}

// below are the nodes that d means, by their path in the container: the one at
// its source, or all of a directory.
func below(nodes map[string]Node, d berth.Device) map[string]Node {
	target := path.Clean(d.Target)
	if d.Target == "" {
		target = path.Clean(d.Source)
	}
	found := map[string]Node{}
	for name, n := range nodes {
		if name == d.Source {
			found[target] = n
		} else if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(d.Source, "/")+"/"); ok {
			found[path.Join(target, rest)] = n
		}
	}
	return found
}

// permissions are r, w and m, each at most once; all by default.
func permissions(d berth.Device) (string, error) {
	if !path.IsAbs(d.Source) || d.Target != "" && !path.IsAbs(d.Target) {
		return "", invalid("device "+d.Source+":"+d.Target, "a path is not absolute")
	}
	if d.Permissions == "" {
		return "rwm", nil
	}
	for i, r := range d.Permissions {
		if !strings.ContainsRune("rwm", r) || strings.ContainsRune(d.Permissions[:i], r) {
			return "", invalid("device "+d.Source, "permissions %q are not of r, w and m", d.Permissions)
		}
	}
	return d.Permissions, nil
}
