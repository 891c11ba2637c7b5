package berth

import "net/netip"

// Protocol is the transport protocol of a published port.
type Protocol string

// The protocols a port can be published for.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// A PortKey names one published port of the host: there is at most one Port
// for each.
type PortKey struct {
	Protocol Protocol `json:"protocol"`
	// HostIP is an address of the host; 0.0.0.0 and :: mean any of the family.
	HostIP   netip.Addr `json:"hostIP"`
	HostPort uint16     `json:"hostPort"`
}

// A Port leads from a host address, port and protocol to an endpoint.
type Port struct {
	PortKey
	Sandbox   string         `json:"sandbox"`   // id
	Network   string         `json:"network"`   // id
	Interface string         `json:"interface"` // with Sandbox: the endpoint
	To        netip.AddrPort `json:"to"`
}
