package engine

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"berth"
	"berth/internal/kernel"
	"berth/internal/plan"
	"berth/internal/store"
)

// Unpublish takes ports back, all or none, in one transaction; without specs,
// all of the sandbox. A spec says which by what it has: protocol, host address,
// host ports, port.
func (e *Engine) Unpublish(ctx context.Context, sandbox string, specs []berth.PortSpec) ([]berth.Port, error) {
	ports, err := e.unpublish(ctx, sandbox, specs)
	if err != nil {
		return nil, fmt.Errorf("unpublish %s: %w", cut(sandbox), err)
	}
	return ports, nil
}

func (e *Engine) unpublish(ctx context.Context, sandbox string, specs []berth.PortSpec) (gone []berth.Port, err error) {
	sb, err := e.recorded(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	locks := func() ([]lock, error) {
		ls := []lock{{store.LockSandbox, sb.ID, true}}
		err := e.store.View(ctx, func(tx *store.Tx) error {
			eps, err := tx.EndpointsOf(sb.ID)
			for _, ep := range eps {
				ls = append(ls, lock{store.LockNetwork, ep.Network, true})
			}
			return err
		})
		return ls, err
	}
	looked := e.o.DryRun
	err = e.do(ctx, locks, func(ctx context.Context) error {
		err := e.commit(ctx, func(tx *store.Tx) (plan.Delta, error) {
			gone = nil
			ports, err := tx.PortsOf(sb.ID)
			if err != nil {
				return plan.Delta{}, err
			}
			if gone, err = match(ports, specs); err != nil {
				return plan.Delta{}, err
			}
			t, err := touching(tx, gone, nil)
			if err != nil {
				return plan.Delta{}, err
			}
			return t.around(tx, func() error { return tx.DeletePorts(gone...) })
		}, nil)
		if err == nil && len(gone) == 0 && !looked {
			// As with what is refused: that nothing is published must be true.
			looked = true
			if clean, err := e.clean(ctx); err == nil && !clean {
				return errDoubt
			}
		}
		return err
	})
	return gone, err
}

// touching is the touch of ports that go and come. With them change their
// networks, which have a way from the host's 127.0.0.1 only while a port is
// published; that of a link is a part of its sandbox.
func touching(tx *store.Tx, going, come []berth.Port) (touch, error) {
	t := touch{going: going, come: come}
	for _, ps := range [][]berth.Port{going, come} {
		for i, p := range ps {
			if i > 0 && p.Network == ps[i-1].Network && p.Sandbox == ps[i-1].Sandbox {
				continue
			}
			n, err := tx.Network(p.Network)
			if ignore(err, berth.ErrNotFound) != nil {
				return t, err
			}
			t.networks = append(t.networks, p.Network)
			if n.Driver == berth.Link {
				t.sandboxes = append(t.sandboxes, p.Sandbox)
			}
		}
	}
	slices.Sort(t.networks)
	slices.Sort(t.sandboxes)
	t.networks, t.sandboxes = slices.Compact(t.networks), slices.Compact(t.sandboxes)
	return t, nil
}

// portState is the plan of some ports.
func portState(tx *store.Tx, ports []berth.Port) (plan.State, error) {
	var s plan.State
	for ps := range bySandbox(ports) {
		who, err := tx.Sandbox(ps[0].Sandbox)
		if ignore(err, berth.ErrNotFound) != nil {
			return s, err
		}
		part := plan.Ports(who.Name, ps...)
		if len(ps) == len(ports) {
			return part, nil // ten thousand ports are mostly of one sandbox: no copy
		}
		s.Add(part)
	}
	return s, nil
}

// bySandbox cuts ports where the sandbox changes.
func bySandbox(ps []berth.Port) iter.Seq[[]berth.Port] {
	return func(yield func([]berth.Port) bool) {
		for from, to := 0, 1; to <= len(ps); to++ {
			if to < len(ps) && ps[to].Sandbox == ps[from].Sandbox {
				continue
			}
			if !yield(ps[from:to]) {
				return
			}
			from = to
		}
	}
}

// match returns the ports, in order of protocol and host port, that specs name.
// One that names none is an error.
func match(ports []berth.Port, specs []berth.PortSpec) ([]berth.Port, error) {
	if len(specs) == 0 {
		return ports, nil
	}
	picked := map[berth.PortKey]bool{}
	var out []berth.Port
	for _, s := range specs {
		found := false
		for _, p := range candidates(ports, s) {
			if !matches(p, s) {
				continue
			}
			found = true
			if !picked[p.PortKey] {
				picked[p.PortKey] = true
				out = append(out, p)
			}
		}
		if !found {
			return nil, fmt.Errorf("port %s is not published: %w", s, berth.ErrNotFound)
		}
	}
	return out, nil
}

// candidates are the ports at the host ports of a spec, if it has any.
func candidates(ports []berth.Port, s berth.PortSpec) []berth.Port {
	if s.HostLow == 0 {
		return ports
	}
	at := func(port int) int {
		i, _ := slices.BinarySearchFunc(ports, port, func(p berth.Port, port int) int {
			return cmp.Or(cmp.Compare(p.Protocol, s.Protocol), cmp.Compare(int(p.HostPort), port))
		})
		return i
	}
	return ports[at(int(s.HostLow)):at(int(s.HostHigh)+1)]
}

func matches(p berth.Port, s berth.PortSpec) bool {
	return p.Protocol == s.Protocol &&
		(s.HostLow == 0 || s.HostLow <= p.HostPort && p.HostPort <= s.HostHigh) &&
		(s.Port == 0 || s.Port == p.To.Port()) &&
		(!s.HostIP.IsValid() || s.HostIP == p.HostIP)
}

// Ports returns the published ports of a sandbox, or of all ("").
func (e *Engine) Ports(ctx context.Context, sandbox string) ([]PortDetail, error) {
	var out []PortDetail
	var id string
	if sandbox != "" {
		sb, err := e.recorded(ctx, sandbox)
		if err != nil {
			if _, ns, ferr := e.find(ctx, sandbox); ferr == nil {
				ns.Close()
				return nil, nil // a namespace that is connected to nothing
			}
			return nil, fmt.Errorf("ports of %s: %w", cut(sandbox), err)
		}
		id = sb.ID
	}
	var all []berth.Port
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		if id != "" {
			all, err = tx.PortsOf(id)
		} else {
			all, err = tx.Ports()
		}
		names := map[string]string{}
		for _, p := range all {
			d := PortDetail{Port: p}
			if _, ok := names[p.Sandbox]; !ok {
				sb, err := tx.Sandbox(p.Sandbox)
				if ignore(err, berth.ErrNotFound) != nil {
					return err
				}
				n, err := tx.Network(p.Network)
				if ignore(err, berth.ErrNotFound) != nil {
					return err
				}
				names[p.Sandbox], names[p.Network] = sb.Name, n.Name
			}
			d.SandboxName, d.NetworkName = names[p.Sandbox], names[p.Network]
			out = append(out, d)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, e.annotate(out)
}

// annotate notes what of a port does not work as one might think.
func (e *Engine) annotate(ports []PortDetail) error {
	if len(ports) == 0 {
		return nil
	}
	ls, err := e.listening(berth.TCP, berth.UDP, berth.SCTP)
	if err != nil {
		return err
	}
	brnf := e.brNetfilter()
	for i, p := range ports {
		if l, ok := ls.at(p.PortKey); ok {
			ports[i].Notes = append(ports[i].Notes, fmt.Sprintf("port %s shadows a listener of the host%s", portName(p.PortKey), l.who()))
		}
		if brnf && p.HostIP.Is6() && (p.HostIP.IsUnspecified() || p.HostIP.IsLoopback()) {
			ports[i].Notes = append(ports[i].Notes, no6Loopback)
		}
	}
	return nil
}

// no6Loopback is true of every port published over IPv6, and is said once for
// all of them.
const no6Loopback = "the ports published over IPv6 do not answer at [::1] on this host: br_netfilter is on, and the kernel refuses ::1 across a bridge (net.bridge.bridge-nf-call-ip6tables=0 cures it)"

// brNetfilter reports whether bridged IPv6 packets pass the IP hooks.
func (e *Engine) brNetfilter() bool {
	v, err := e.kernel.Sysctl(plan.Host, "net/bridge/bridge-nf-call-ip6tables")
	return err == nil && v == "1" // without br_netfilter there is no such sysctl
}

// shadows notes what annotate does, each thing once.
func (e *Engine) shadows(ports []berth.Port) ([]string, error) {
	details := make([]PortDetail, len(ports))
	for i, p := range ports {
		details[i].Port = p
	}
	if err := e.annotate(details); err != nil {
		return nil, err
	}
	var out []string
	said := map[string]bool{}
	for _, d := range details {
		for _, n := range d.Notes {
			if !said[n] {
				out = append(out, n)
			}
			said[n] = true
		}
	}
	return out, nil
}

// listeners are the host's bound sockets by protocol and port.
type listeners map[listenerKey][]listener

type listenerKey struct {
	protocol berth.Protocol
	port     uint16
}

type listener kernel.Listener

// listening reads the host's bound sockets, once for any number of ports.
func (e *Engine) listening(protocols ...berth.Protocol) (listeners, error) {
	all, err := e.kernel.Listeners(protocols...)
	if err != nil {
		return nil, fmt.Errorf("list the host's listeners: %w", err)
	}
	out := listeners{}
	for _, l := range all {
		k := listenerKey{l.Protocol, l.Addr.Port()}
		out[k] = append(out[k], listener(l))
	}
	return out, nil
}

// at finds a listener that a published port would hide: at any address of the
// host if the port is published at any.
func (ls listeners) at(k berth.PortKey) (listener, bool) {
	for _, l := range ls[listenerKey{k.Protocol, k.HostPort}] {
		a := l.Addr.Addr().Unmap()
		both := a.IsUnspecified() && a.Is6() && !l.V6Only
		if both || overlap(a, k.HostIP) {
			return l, true
		}
	}
	return listener{}, false
}

// who names the process behind a listener.
func (l listener) who() string {
	if who := kernel.Owner(l.Inode); who != "" {
		return " by " + who + " (" + l.Addr.String() + ")"
	}
	return " (" + strings.TrimSpace(l.Addr.String()) + ")"
}
