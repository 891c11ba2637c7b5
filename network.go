package berth

import (
	"net/netip"
	"time"
)

// Driver is the kind of a network.
type Driver string

const (
	// Bridge is a Linux bridge with any number of endpoints (up to 1,023).
	Bridge Driver = "bridge"
	// Link is a bare veth pair with exactly two ends.
	Link Driver = "link"
)

// A Network is one L2 segment with its subnets and its way out.
type Network struct {
	ID      string    `json:"id"` // 64 hex digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Driver  Driver    `json:"driver"`

	// Subnets in the order given, at least one unless the network is a link
	// between two sandboxes. Several of one family are allowed.
	Subnets []Subnet `json:"subnets,omitempty"`

	// Internal networks have no way out: no default route, nothing of the host
	// but the gateway's own address.
	Internal bool `json:"internal,omitempty"`
	// Isolated is icc=false: neighbours do not reach each other, the gateway
	// stays reachable.
	Isolated bool `json:"isolated,omitempty"`
	// HostDeny is host=deny: the host's own services are closed to the network.
	HostDeny bool `json:"hostDeny,omitempty"`
	// HostEnd reports whether the host is one of a link's two ends.
	// Always true for a bridge.
	HostEnd bool `json:"hostEnd"`
	// Masquerade lets the network leave with the host's address.
	Masquerade bool `json:"masquerade"`

	// Open is open=true: the network may be entered from outside without a
	// published port.
	Open bool `json:"open,omitempty"`
	// NoAddress is address=false: the gateways are somebody else's on the
	// segment. The host carries frames and has no part in what is in them.
	NoAddress bool `json:"noAddress,omitempty"`
	// NoDefaultRoute is default-route=false: sandboxes reach the subnets only.
	NoDefaultRoute bool `json:"noDefaultRoute,omitempty"`
	// NoHairpin is hairpin=false: no port of the bridge sends back where a frame
	// came from.
	NoHairpin bool `json:"noHairpin,omitempty"`
	// Promisc is promisc=true: the bridge takes up every frame.
	Promisc bool `json:"promisc,omitempty"`

	MTU int `json:"mtu"` // bytes
	// Bridge is the name of the bridge on the host; empty for a link.
	Bridge string `json:"bridge,omitempty"`
	// Owned reports whether Berth made the bridge. A foreign bridge is used and
	// never deleted.
	Owned bool `json:"owned"`
	// ForeignAddrs are the gateway prefixes a foreign bridge already carried:
	// they are not ours to put or drop.
	ForeignAddrs []netip.Prefix `json:"foreignAddrs,omitempty"`

	Options map[string]string `json:"options,omitempty"` // as the user gave them
	Labels  map[string]string `json:"labels,omitempty"`
}

// A Subnet is one prefix of a network.
type Subnet struct {
	Prefix  netip.Prefix `json:"prefix"`  // masked
	Gateway netip.Addr   `json:"gateway"` // the host's address in the prefix; see NoAddress
	// Range limits what is handed out; the zero Prefix means the whole subnet.
	Range netip.Prefix `json:"range,omitzero"`
	// Aux names addresses that are never handed out.
	Aux map[string]netip.Addr `json:"aux,omitempty"`
}

// Routed reports whether the host is on the network itself and not only on the
// way between its sandboxes: it has their addresses, NAT and ports.
func (n Network) Routed() bool { return n.HostEnd && !n.NoAddress }

// Has4 reports whether the network has an IPv4 subnet.
func (n Network) Has4() bool { return n.has(true) }

// Has6 reports whether the network has an IPv6 subnet.
func (n Network) Has6() bool { return n.has(false) }

func (n Network) has(v4 bool) bool {
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is4() == v4 {
			return true
		}
	}
	return false
}

// Gateway returns the gateway of the subnet that holds a, and false if no
// subnet does.
func (n Network) Gateway(a netip.Addr) (netip.Addr, bool) {
	for _, s := range n.Subnets {
		if s.Prefix.Contains(a) {
			return s.Gateway, s.Gateway.IsValid()
		}
	}
	return netip.Addr{}, false
}
