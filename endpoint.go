package berth

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// A MAC is an Ethernet address; the zero value means none.
type MAC [6]byte

// String returns the address as aa:bb:cc:dd:ee:ff.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	parsed, err := ParseMAC(string(b))
	*m = parsed
	return err
}

// An Endpoint is a sandbox's connection to one network. Its key is the sandbox
// and the interface.
type Endpoint struct {
	ID        string    `json:"id"` // 64 hex digits
	Network   string    `json:"network"`
	Sandbox   string    `json:"sandbox"`
	Interface string    `json:"interface"` // inside the sandbox
	Created   time.Time `json:"created"`

	// Addrs hold the endpoint's addresses with their subnets' lengths, IPv4
	// first, one for each family of the network.
	Addrs []netip.Prefix `json:"addrs,omitempty"`
	MAC   MAC            `json:"mac"`

	Aliases []string `json:"aliases,omitempty"`
	// GwPriority decides which endpoint gives the default route: the highest
	// wins.
	GwPriority int `json:"gwPriority,omitempty"`
	// Slot is the endpoint's number within its sandbox; it picks the routing
	// table of the endpoint's own source address.
	Slot int `json:"slot"`

	// Found marks an endpoint that others made: its interface, addresses and
	// routes are theirs, and Berth neither makes, changes nor deletes them.
	Found bool `json:"found,omitempty"`
	// Link is the host's end of what was found; empty if it has none.
	Link string `json:"link,omitempty"`

	// Rates are how much may pass.
	Rates Rates `json:"rates,omitzero"`

	// Leaving marks an endpoint whose kernel objects are to go: it keeps its
	// addresses from reuse until they have gone.
	Leaving bool              `json:"leaving,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Addr4 returns the endpoint's IPv4 address; it is not valid if there is none.
func (e Endpoint) Addr4() netip.Addr { return e.addr(true) }

// Addr6 returns the endpoint's IPv6 address; it is not valid if there is none.
func (e Endpoint) Addr6() netip.Addr { return e.addr(false) }

func (e Endpoint) addr(v4 bool) netip.Addr {
	for _, p := range e.Addrs {
		if p.Addr().Is4() == v4 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// ParseMAC parses a six-byte Ethernet address in any notation of
// [net.ParseMAC].
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != 6 {
		return MAC{}, fmt.Errorf("MAC address %q: %w", s, ErrInvalid)
	}
	return MAC(hw), nil
}
