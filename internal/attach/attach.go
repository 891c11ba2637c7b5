// Package attach connects network namespaces for callers that keep no record of
// it: what it made is found by the name of the interface alone. Links that it
// makes carry no mark of Berth's and are left alone by everything else.
package attach

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"berth"
	"berth/internal/kernel"
	"berth/internal/netns"
	"berth/internal/plan"
)

// inside is the namespace that is connected.
const inside plan.Place = "the container"

// mainTable is the routing table that everything looks in.
const mainTable = 254

// A Host is the namespace of the caller, with one other.
type Host struct {
	k    *kernel.Kernel
	host *netns.NS
}

// Open opens the namespace at a path beside the caller's own. Its error matches
// [fs.ErrNotExist] if there is none.
func Open(path string) (*Host, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, err
	}
	if path != "" {
		ns, err := netns.Open(path)
		if err != nil {
			host.Close()
			return nil, err
		}
		ns.Close()
	}
	k, err := kernel.Open(host, kernel.Options{Lookup: func(plan.Place) (*netns.NS, error) {
		if path == "" {
			return nil, fs.ErrNotExist
		}
		return netns.Open(path)
	}})
	if err != nil {
		host.Close()
		return nil, err
	}
	return &Host{k, host}, nil
}

// Close lets go of both namespaces.
func (h *Host) Close() {
	_ = h.k.Close() // nothing was written by it that is not answered
	h.host.Close()
}

// A Link is a network interface as it is.
type Link = kernel.LinkInfo

// Bridge looks at a bridge, and makes it if it is not there. One that is there
// is brought up, and to take up every frame if that is asked for.
func (h *Host) Bridge(ctx context.Context, name string, mtu int, promisc bool) (Link, error) {
	key := plan.LinkKey{Place: plan.Host, Name: name}
	l, err := h.OnHost(name)
	if errors.Is(err, berth.ErrNotFound) {
		err = h.k.Apply(ctx, []plan.Step{
			plan.PutLink{Key: key, Link: plan.Link{Kind: plan.BridgeLink, MTU: mtu, MAC: randomMAC(), Promisc: promisc}},
		})
		if errors.Is(err, berth.ErrExists) { // by another call meanwhile
			err = nil
		}
		if err == nil {
			l, err = h.OnHost(name)
		}
	}
	if err != nil {
		return l, err
	}
	if l.Kind != string(plan.BridgeLink) {
		return l, fmt.Errorf("%q already exists but is not a bridge", name)
	}
	on := true
	tune := plan.TuneLink{Key: key, Up: &on}
	if promisc && !l.Promisc() {
		tune.Promisc = &on
	}
	if l.Up && tune.Promisc == nil {
		return l, nil
	}
	return l, h.k.Apply(ctx, []plan.Step{tune, plan.SetSysctl{
		Key: plan.SysctlKey{Place: plan.Host, Path: "net/ipv6/conf/" + name + "/accept_ra"}, Value: "0",
	}})
}

// OnHost looks at a link of the host; its error matches [berth.ErrNotFound].
func (h *Host) OnHost(name string) (Link, error) { return h.look(plan.Host, name) }

// Inside looks at a link of the namespace; its error matches
// [berth.ErrNotFound].
func (h *Host) Inside(name string) (Link, error) { return h.look(inside, name) }

func (h *Host) look(where plan.Place, name string) (Link, error) {
	l, _, there, err := h.k.Found(where, name)
	if err == nil && !there {
		err = fmt.Errorf("link %q %w", name, berth.ErrNotFound)
	}
	return l, err
}

// HostEnd is the name of the other end of a link inside, if it is on the host.
func (h *Host) HostEnd(name string) (string, error) {
	_, end, _, err := h.k.Found(inside, name)
	return end, err
}

// BridgeOf is the bridge of which a link of the host is a port; empty for none.
func (h *Host) BridgeOf(port string) (string, error) {
	all, err := h.k.Links(plan.Host)
	at := slices.IndexFunc(all, func(l Link) bool { return l.Name == port })
	if err != nil || at < 0 {
		return "", err
	}
	return all[at].Master, nil
}

// RoutesInside are the destinations and gateways of the namespace's routes.
func (h *Host) RoutesInside() (map[netip.Prefix][]netip.Addr, error) { return h.k.RoutesOf(inside) }

// SysctlInside reads a setting of the namespace, named by its path below
// /proc/sys.
func (h *Host) SysctlInside(path string) (string, error) { return h.k.Sysctl(inside, path) }

// SetSysctlInside writes a setting of the namespace.
func (h *Host) SetSysctlInside(ctx context.Context, path, value string) error {
	return h.k.Apply(ctx, []plan.Step{plan.SetSysctl{Key: plan.SysctlKey{Place: inside, Path: path}, Value: value}})
}

// A Change is what of a link is to be otherwise.
type Change struct {
	MTU                   int
	MAC                   berth.MAC
	Promisc, AllMulti, Up *bool
	TxQueue               *int
}

// Tune changes a link of the namespace.
func (h *Host) Tune(ctx context.Context, name string, c Change) error {
	return h.k.Apply(ctx, []plan.Step{plan.TuneLink{
		Key: plan.LinkKey{Place: inside, Name: name}, MTU: c.MTU, MAC: c.MAC, Promisc: c.Promisc, AllMulti: c.AllMulti, Up: c.Up, TxQueue: c.TxQueue,
	}})
}

// Isolate keeps a port of a bridge of the host from other such ports.
func (h *Host) Isolate(ctx context.Context, port string, on bool) error {
	return h.k.Apply(ctx, []plan.Step{plan.TuneLink{Key: plan.LinkKey{Place: plan.Host, Name: port}, Isolated: &on}})
}

// ID is a number of the host's namespace, which it alone has until the next
// boot.
func (h *Host) ID() uint64 { return h.host.Cookie() }

// Remove deletes a link of the namespace, with its other end. That it is not
// there is no error.
func (h *Host) Remove(ctx context.Context, name string) error {
	return h.k.Apply(ctx, []plan.Step{plan.DropLinks{Place: inside, Names: []string{name}, Others: true}})
}

// PutGateways gives a bridge of the host addresses. One of the same family that
// it has, and that is another, is in the way: of IPv6 only if their subnets
// overlap. It goes if force says so.
func (h *Host) PutGateways(ctx context.Context, bridge string, all []netip.Prefix, force bool) error {
	l, err := h.OnHost(bridge)
	if err != nil {
		return err
	}
	for _, p := range all {
		if slices.Contains(l.Addrs, p) {
			continue
		}
		var steps []plan.Step
		key := plan.LinkKey{Place: plan.Host, Name: bridge}
		for _, old := range l.Addrs {
			if old.Addr().Is4() != p.Addr().Is4() || p.Addr().Is6() && !old.Overlaps(p) {
				continue
			}
			if !force {
				return fmt.Errorf("%q already has an IP address different from %s", bridge, p)
			}
			steps = append(steps, plan.DropAddr{Key: plan.AddrKey{Link: key, Prefix: old}})
		}
		// Its MAC becomes its own: else it is that of the lowest of its ports.
		steps = append(steps, plan.PutAddr{Key: plan.AddrKey{Link: key, Prefix: p}}, plan.TuneLink{Key: key, MAC: l.MAC})
		if err := h.k.Apply(ctx, steps); err != nil {
			return err
		}
		if l, err = h.OnHost(bridge); err != nil {
			return err
		}
	}
	return nil
}

// Forward switches forwarding on for the families of some addresses, if it is
// off.
func (h *Host) Forward(ctx context.Context, all []netip.Prefix) error {
	for _, f := range []struct {
		path string
		v4   bool
	}{{plan.Forward4, true}, {plan.Forward6, false}} {
		if !slices.ContainsFunc(all, func(p netip.Prefix) bool { return p.Addr().Is4() == f.v4 }) {
			continue
		}
		now, err := h.k.Sysctl(plan.Host, f.path)
		if err == nil && now != "1" {
			err = h.k.Apply(ctx, []plan.Step{plan.SetSysctl{Key: plan.SysctlKey{Place: plan.Host, Path: f.path}, Value: "1"}})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// randomMAC is an address of the kind that the kernel makes: else a bridge has
// that of the lowest of its ports.
func randomMAC() (m berth.MAC) {
	_, _ = rand.Read(m[:]) // it never fails
	m[0] = m[0]&^1 | 2
	return m
}

func randomName() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // it never fails
	return fmt.Sprintf("veth%x", b)
}
