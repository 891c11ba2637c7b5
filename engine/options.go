package engine

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"berth"
)

// An option sets one field of a network from its text.
type option func(n *berth.Network, value string) error

// options are what --opt takes: Berth's short names, and Docker's for the same
// things.
var options = map[string]option{
	"icc":        truth(func(n *berth.Network, v bool) { n.Isolated = !v }),
	"masquerade": truth(func(n *berth.Network, v bool) { n.Masquerade = v }),
	"mtu":        setMTU,
	"bridge":     setBridge,
	"host":       setHost,

	"open":          truth(func(n *berth.Network, v bool) { n.Open = v }),
	"address":       truth(func(n *berth.Network, v bool) { n.NoAddress = !v }),
	"default-route": truth(func(n *berth.Network, v bool) { n.NoDefaultRoute = !v }),
	"hairpin":       truth(func(n *berth.Network, v bool) { n.NoHairpin = !v }),
	"promisc":       truth(func(n *berth.Network, v bool) { n.Promisc = v }),

	"com.docker.network.bridge.enable_icc":           truth(func(n *berth.Network, v bool) { n.Isolated = !v }),
	"com.docker.network.bridge.enable_ip_masquerade": truth(func(n *berth.Network, v bool) { n.Masquerade = v }),
	"com.docker.network.bridge.name":                 setBridge,
	"com.docker.network.driver.mtu":                  setMTU,
}

// refused are options of Docker's that cannot mean here what they mean there.
var refused = map[string]string{
	"com.docker.network.bridge.default_bridge":          "no bridge is special here",
	"com.docker.network.bridge.host_binding_ipv4":       "give the host address with each port: publish SANDBOX 192.0.2.1:8080:80",
	"com.docker.network.bridge.inhibit_ipv4":            "--opt address=false leaves the bridge without an address; one that has its address already is named by --opt bridge=NAME",
	"com.docker.network.bridge.gateway_mode_ipv4":       "networks are nat; --internal, --opt masquerade=false and --opt open=true are the other modes",
	"com.docker.network.bridge.gateway_mode_ipv6":       "networks are nat; --internal, --opt masquerade=false and --opt open=true are the other modes",
	"com.docker.network.bridge.trusted_host_interfaces": "published ports may be entered from everywhere; --opt open=true opens all",
	"com.docker.network.host_ipv4":                      "the source address is the way out's own",
	"com.docker.network.host_ipv6":                      "the source address is the way out's own",
	"com.docker.network.container_iface_prefix":         "name the interface when connecting: --interface",
}

// OptionNames returns the names of the options of a network, sorted.
func OptionNames() []string { return slices.Sorted(maps.Keys(options)) }

func setOptions(n *berth.Network, opts map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		set, ok := options[name]
		if why, no := refused[name]; no {
			return fmt.Errorf("option %s is not supported: %s: %w", name, why, berth.ErrInvalid)
		}
		if !ok {
			return fmt.Errorf("no option %s; there are %s: %w", cut(name), strings.Join(shortNames(), ", "), berth.ErrInvalid)
		}
		if err := set(n, opts[name]); err != nil {
			return fmt.Errorf("option %s=%s: %w", name, cut(opts[name]), err)
		}
	}
	return nil
}

// agree refuses options of which one takes away what the other is about.
func agree(n berth.Network) error {
	for _, c := range []struct {
		both bool
		why  string
	}{
		{n.Internal && n.Open, "open=true: an internal network has no way in"},
		{n.NoAddress && n.Driver == berth.Link, "address=false: a link's host end without an address leads nowhere; host=false makes a link between two sandboxes"},
		{n.NoAddress && n.Open, "open=true with address=false: the host does not lead to a network on which it has no address"},
		{n.NoAddress && n.HostDeny, "host=deny with address=false: the host has no part in a network on which it has no address"},
		{n.Promisc && n.Driver != berth.Bridge, "promisc: only a bridge takes up frames"},
		{n.NoHairpin && n.Driver != berth.Bridge, "hairpin: only a bridge has ports"},
	} {
		if c.both {
			return fmt.Errorf("option %s: %w", c.why, berth.ErrInvalid)
		}
	}
	return nil
}

func shortNames() []string {
	return slices.DeleteFunc(OptionNames(), func(s string) bool { return strings.Contains(s, ".") })
}

func truth(set func(*berth.Network, bool)) option {
	return func(n *berth.Network, value string) error {
		v, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("true or false is wanted: %w", berth.ErrInvalid)
		}
		set(n, v)
		return nil
	}
}

// setMTU takes what an Ethernet link of ours can carry: IPv4's least (RFC 791)
// to veth's most.
func setMTU(n *berth.Network, value string) error {
	mtu, err := strconv.Atoi(value)
	if err != nil || mtu < 68 || mtu > 65535 {
		return fmt.Errorf("68 to 65535 bytes are wanted: %w", berth.ErrInvalid)
	}
	n.MTU = mtu
	return nil
}

func setBridge(n *berth.Network, value string) error {
	if !validLinkName(value) {
		return fmt.Errorf("a link's name has 1 to 15 characters, no space, slash or colon: %w", berth.ErrInvalid)
	}
	if n.Driver != berth.Bridge {
		return fmt.Errorf("only a bridge network has one: %w", berth.ErrInvalid)
	}
	n.Bridge = value
	return nil
}

// setHost is one option with two meanings: host=deny closes the host's own
// services to a network, host=false makes a link between two sandboxes.
func setHost(n *berth.Network, value string) error {
	switch v, err := strconv.ParseBool(value); {
	case value == "deny":
		n.HostDeny = true
	case value == "allow" || err == nil && v:
	case err == nil && n.Driver == berth.Link:
		n.HostEnd = false
	case err == nil:
		return fmt.Errorf("the host has an end of every bridge; --driver link can do without, --internal closes the way out: %w", berth.ErrInvalid)
	default:
		return fmt.Errorf("allow, deny, or (for a link) false is wanted: %w", berth.ErrInvalid)
	}
	return nil
}

// validLinkName reports whether the kernel takes a name (dev_valid_name), and
// nft can write it.
func validLinkName(s string) bool {
	if s == "" || len(s) > 15 || s == "." || s == ".." {
		return false
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || strings.ContainsRune(`/:"\*;{}`, r) {
			return false
		}
	}
	return true
}
