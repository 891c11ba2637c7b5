package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/cgroup"
	"berth/internal/foreign"
	"berth/internal/kernel"
	"berth/internal/netns"
	"berth/internal/nft"
	"berth/internal/plan"
)

// A host is the private host, with a network outside.
type host struct {
	kernel     *kernel.Kernel
	nft        *nft.Conn
	forwarding string      // as it was before anything was made
	program    string      // what berth is run by
	mode       cgroup.Mode // of the containers' control groups
}

// The link between the private host and the network outside.
const (
	hostAddr = "192.0.2.1"
	lanAddr  = "192.0.2.2"
	lanName  = "outside"
)

const forwardingPath = "net/ipv4/ip_forward"

// elsewhere refuses namespaces that are those the demo was started from.
func elsewhere(outside string) error {
	own, err := namespaces()
	if err != nil {
		return err
	}
	for _, ns := range strings.Split(own, ",") {
		if !strings.Contains(outside, ":[") || slices.Contains(strings.Split(outside, ","), ns) {
			return errors.New("--" + insideFlag + " is not for people: it would change this host")
		}
	}
	return nil
}

// newHost makes a host of the process's own namespaces, which are [elsewhere]:
// mounts that nobody else sees, a loopback that is up, and one uplink.
func newHost(o options) (h *host, err error) {
	h = &host{program: "/proc/self/exe"}
	if o.group == "" {
		err = mounts()
	} else if err = mountsForContainers(o.group); err == nil {
		h.program, err = copyProgram()
	}
	if err != nil {
		return nil, err
	}
	if o.group != "" {
		if h.mode, err = cgroup.Detect(); err != nil {
			return nil, err
		}
	}
	if err := environment(); err != nil {
		return nil, err
	}
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	if err := netns.Create(lanName); err != nil {
		return nil, fmt.Errorf("make the network outside: %w", err)
	}
	outsideNS := func(plan.Place) (*netns.NS, error) { return netns.Open(netns.Path(lanName)) }
	if h.kernel, err = kernel.Open(ns, kernel.Options{Lookup: outsideNS}); err != nil {
		return nil, err
	}
	if h.nft, err = nft.Dial(ns); err != nil {
		return nil, err
	}
	if err := h.wire(); err != nil {
		return nil, err
	}
	h.forwarding, err = h.kernel.Sysctl(plan.Host, forwardingPath)
	return h, err
}

func mounts() error {
	if err := unix.Mount("", "/", "none", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// Best effort: Berth reads nothing there, but what is run to look around
	// would see the links of the real host.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// environment keeps the store in memory, and the user's own settings out.
func environment() error {
	const config = "/run/config.json"
	if err := os.WriteFile(config, []byte("{}"), 0o600); err != nil {
		return err
	}
	return errors.Join(os.Setenv("BERTH_ROOT", "/run/berth-root"), os.Setenv("BERTH_RUN", "/run/berth"), os.Setenv("BERTH_CONFIG", config))
}

// wire joins the host and the outside.
func (h *host) wire() error {
	up, far := plan.LinkKey{Name: "uplink"}, plan.LinkKey{Place: lanName, Name: "lan"}
	return h.kernel.Apply(context.Background(), []plan.Step{
		plan.UpLink{Key: plan.LinkKey{Name: "lo"}},
		plan.PutLink{Key: up, Link: plan.Link{Kind: plan.VethLink, MTU: 1500, Up: true, Peer: far}, Inside: plan.Link{Kind: plan.VethLink, MTU: 1500, Peer: up}},
		plan.PutAddr{Key: plan.AddrKey{Link: up, Prefix: netip.MustParsePrefix(hostAddr + "/24")}},
		plan.PutAddr{Key: plan.AddrKey{Link: far, Prefix: netip.MustParsePrefix(lanAddr + "/24")}},
		plan.UpLink{Key: far},
	})
}

// bridged reports whether frames that stay on a bridge pass the firewall.
func (h *host) bridged() bool {
	v, err := h.kernel.Sysctl(plan.Host, "net/bridge/bridge-nf-call-iptables")
	return err == nil && v == "1"
}

// drops reports whether another tool's forward chain has the policy to drop.
func (h *host) drops() bool {
	tables, err := h.nft.Foreign()
	for _, t := range tables {
		for _, c := range t.Chains {
			if c.Hook == foreign.Forward && c.Drop {
				return err == nil
			}
		}
	}
	return false
}

// element returns an element of Berth's table, as nft writes it.
func (h *host) element(set, key string) (string, error) {
	all, err := h.nft.Read()
	if err != nil {
		return "", err
	}
	e, ok := all[plan.ElemKey{Set: set, Key: key}]
	if !ok {
		return "", nil
	}
	return key + " : " + e.Value, nil
}

// listens reports whether a process of the host listens at a TCP port.
func (h *host) listens(port uint16) (bool, error) {
	all, err := h.kernel.Listeners()
	return slices.ContainsFunc(all, func(l kernel.Listener) bool {
		return l.Protocol == berth.TCP && l.Addr.Port() == port
	}), err
}

// A link is an interface with its IPv4 addresses, as a place has it.
type link struct {
	name   string
	up     bool // with a carrier
	addrs  []string
	bridge bool
}

func (l link) String() string {
	state := "DOWN"
	if l.up {
		state = "UP"
	}
	return l.name + " " + state + " " + strings.Join(l.addrs, " ")
}

// links lists the interfaces of a place that lead somewhere; those of the host
// itself that Berth made.
func links(place string) (out []link, err error) {
	err = in(place, func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range all {
			if i.Flags&net.FlagLoopback != 0 || place == "" && !strings.HasPrefix(i.Name, "bt") {
				continue
			}
			addrs, err := i.Addrs()
			if err != nil {
				return err
			}
			l := link{name: i.Name, up: i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0, bridge: strings.HasPrefix(i.Name, "bt-")}
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
					l.addrs = append(l.addrs, p.String())
				}
			}
			out = append(out, l)
		}
		return nil
	})
	return out, err
}

// route returns how a packet leaves the host: the link and the address it
// leaves with.
func route(to string) (dev, src string, err error) {
	// Connecting a UDP socket asks for the route and sends nothing.
	c, err := net.Dial("udp4", net.JoinHostPort(to, "9"))
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	src = c.LocalAddr().(*net.UDPAddr).IP.String()
	all, err := links("")
	for _, l := range all {
		if slices.ContainsFunc(l.addrs, func(a string) bool { return strings.HasPrefix(a, src+"/") }) {
			dev = l.name
		}
	}
	return dev, src, err
}
