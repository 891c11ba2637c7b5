package engine

import (
	"log/slog"
	"net/netip"

	"berth"
)

// Options are how an Engine is opened. The zero value is the host the process
// runs in, with its own store.
type Options struct {
	Root string // directory of what outlives a reboot; default /var/lib/berth
	Run  string // directory of what does not; default /run/berth
	// NetNS is the path of the namespace that is the host; default: the
	// caller's own.
	NetNS string
	// Pools are where subnets come from when none is asked for; default:
	// Docker's local pools.
	Pools []Pool
	// DryRun lets every method work on a copy of the store and change nothing:
	// Commands is told what would be done.
	DryRun bool
	// Commands, if set, is given every change of the kernel before it is made,
	// as a script of ip, bridge, nft, sysctl and conntrack commands.
	Commands func(script string)
	// Notice, if set, is told what a user should know and is no error.
	Notice func(text string)
	Log    *slog.Logger // default: discard
}

// A Pool is a prefix that is cut into subnets of Size bits.
type Pool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"`
}

// NetNS returns the reference of the sandbox at a path, as every method that
// takes a sandbox understands it: a name, "path:PATH" or "pid:N".
func NetNS(path string) string { return "path:" + path }

// A NetworkSpec is what a network is asked to be. The zero value of every
// field but Name is the default.
type NetworkSpec struct {
	Name   string
	Driver berth.Driver // default Bridge
	// Subnets asked for. One with an unspecified address ("0.0.0.0/24") asks
	// for any of that size. Without a subnet of a wanted family, the next free
	// one of the pools (IPv4) or of the host's own ULA prefix (IPv6) is taken.
	Subnets []berth.Subnet
	NoIPv4  bool
	IPv6    bool
	// Internal networks have no way out.
	Internal bool
	// Options in Docker's or Berth's names; see OptionNames.
	Options map[string]string
	Labels  map[string]string
}

// RemoveOptions are how a network is removed.
type RemoveOptions struct {
	Force bool // disconnect what is connected
}

// A NetworkDetail is a network with what is on it.
type NetworkDetail struct {
	berth.Network
	Endpoints []EndpointDetail `json:"endpoints"`
	// Refused are the packets dropped at the network's border, by reason.
	Refused []Refusal `json:"refused"`
}

// An EndpointDetail is an endpoint with its sandbox's and network's names and
// its ports.
type EndpointDetail struct {
	berth.Endpoint
	SandboxName string       `json:"sandboxName"`
	NetworkName string       `json:"networkName"`
	Ports       []berth.Port `json:"ports,omitempty"`
}

// A Refusal counts packets dropped at a network's border for one reason.
type Refusal struct {
	// Reason: "leaving" (from the network to where it may not reach),
	// "entering" (to it, without a published port), "direct" (from outside to
	// its addresses, or with a forged source).
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// A SandboxSpec is what a sandbox is asked to be.
type SandboxSpec struct {
	Name   string
	Labels map[string]string
}

// A SandboxDetail is a sandbox with its endpoints.
type SandboxDetail struct {
	berth.Sandbox
	Alive     bool             `json:"alive"` // its namespace is there
	Endpoints []EndpointDetail `json:"endpoints"`
}

// ConnectOptions are how a sandbox is connected; the zero value is the default.
type ConnectOptions struct {
	IP4, IP6   netip.Addr   // fixed addresses; default: the next free one
	Prefer     []netip.Addr // taken before the next free one, if they are free
	MAC        berth.MAC    // default: a function of network and address
	Interface  string       // inside the sandbox; default: the first free eth0, eth1, …
	Aliases    []string
	GwPriority int
	Labels     map[string]string
	Rates      berth.Rates // default: no limit
	// Found says that others have connected the sandbox by Interface: it is
	// recorded as it is, for ports and limits, and left alone.
	Found bool
	// Within, if there is a range of a family, are the addresses of which the
	// next free one is taken.
	Within []AddrRange
	// Sandbox is what a sandbox is called that is met for the first time, if it
	// can be and nobody is called so.
	Sandbox string
}

// An AddrRange are the addresses from the first to the last.
type AddrRange struct{ First, Last netip.Addr }

// UpdateOptions are what of an endpoint changes.
type UpdateOptions struct {
	Interface string // default: the only endpoint on the network
	Rates     berth.RateChange
	whole     *berth.Rates // instead of Rates
}

// DisconnectOptions are which endpoints of a sandbox are disconnected.
type DisconnectOptions struct {
	Interface string // default: all endpoints on the network
}

// PublishOptions are how ports are published.
type PublishOptions struct {
	Network string // default: the endpoint with the default route
	// Replace takes a port over from another sandbox in the same transaction.
	Replace bool
	// Cut ends the established connections of ports that are replaced.
	Cut bool
}

// A PortDetail is a published port with the names around it and what is to be
// said about it.
type PortDetail struct {
	berth.Port
	SandboxName string `json:"sandboxName"`
	NetworkName string `json:"networkName"`
	// Notes say what does not work as one might think: a listener of the host
	// that the port shadows, [::1] where the kernel refuses it.
	Notes []string `json:"notes,omitempty"`
}

// A Report is what Check and Reconcile found.
type Report struct {
	// Missing, Extra and Changed are one line for each kernel object that is
	// not as the store wants it.
	Missing []string `json:"missing,omitempty"`
	Extra   []string `json:"extra,omitempty"`
	Changed []string `json:"changed,omitempty"`
	// Dead are sandboxes whose namespace is gone.
	Dead []string `json:"dead,omitempty"`
	// Obstacles are other tools' rules that drop what Berth allows. They are
	// no drift.
	Obstacles []Obstacle `json:"obstacles,omitempty"`
	// Notes are further things worth knowing, as a shadowed listener.
	Notes []string `json:"notes,omitempty"`
}

// Clean reports whether the kernel is what the store wants.
func (r Report) Clean() bool {
	return len(r.Missing)+len(r.Extra)+len(r.Changed)+len(r.Dead) == 0
}

// An Obstacle is a rule or policy of another tool that drops what Berth
// allows.
type Obstacle struct {
	Who   string `json:"who"`   // "Docker", "ufw", "firewalld", "iptables", …
	Where string `json:"where"` // "ip filter FORWARD policy drop"
	What  string `json:"what"`  // what does not get through
	Cure  string `json:"cure"`  // the command that cures it
}

// A Feature is something of the kernel that Berth uses.
type Feature struct {
	Name  string `json:"name"`
	Have  bool   `json:"have"`
	Costs string `json:"costs"` // what is lost without it
}

// HostInfo is what Info tells of the host.
type HostInfo struct {
	Kernel    string    `json:"kernel"`
	Root      string    `json:"root"`
	Run       string    `json:"run"`
	Networks  int       `json:"networks"`
	Sandboxes int       `json:"sandboxes"`
	Endpoints int       `json:"endpoints"`
	Ports     int       `json:"ports"`
	Pools     []Pool    `json:"pools"`
	Features  []Feature `json:"features"`
}
