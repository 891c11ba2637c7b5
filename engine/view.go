package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// facts are what the host was like before Berth switched its forwarding on, by
// family; kept in the run store, as a reboot forgets them too.
type facts struct {
	V4, V6 *forwarding
}

// forwarding is one family's.
type forwarding struct {
	Was      string   `json:"was"`                // the sysctl's value
	Uplinks  []string `json:"uplinks,omitempty"`  // if it was off
	AcceptRA []string `json:"acceptRA,omitempty"` // IPv6: links that believed advertisements
}

const metaForwarding = "forwarding"

func readFacts(tx *store.Tx) (facts, error) {
	var f facts
	b, err := tx.Meta(metaForwarding)
	if err != nil || len(b) == 0 {
		return f, err
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read the forwarding record: %w", err)
	}
	return f, nil
}

func writeFacts(tx *store.Tx, f facts) error {
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	return tx.SetMeta(metaForwarding, b)
}

// learn completes facts for the families that networks use, from what the host
// is like now.
func (e *Engine) learn(f facts, v4, v6 bool) (facts, error) {
	if (!v4 || f.V4 != nil) && (!v6 || f.V6 != nil) {
		return f, nil
	}
	up4, up6, err := e.kernel.Uplinks()
	if err != nil {
		return f, err
	}
	if v4 && f.V4 == nil {
		was, err := e.kernel.Sysctl(plan.Host, plan.Forward4)
		if err != nil {
			return f, err
		}
		f.V4 = &forwarding{Was: was}
		if was == "0" {
			f.V4.Uplinks = up4
		}
	}
	if v6 && f.V6 == nil {
		if f.V6, err = e.learn6(up6); err != nil {
			return f, err
		}
	}
	return f, nil
}

func (e *Engine) learn6(uplinks []string) (*forwarding, error) {
	was, err := e.kernel.Sysctl(plan.Host, plan.Forward6)
	if err != nil {
		return nil, fmt.Errorf("IPv6 is off on this host: %w", errors.Join(berth.ErrUnsupported, err))
	}
	f := &forwarding{Was: was}
	if was != "0" {
		return f, nil
	}
	f.Uplinks = uplinks
	for _, l := range uplinks {
		// With forwarding on, 1 means "only as a host", so nothing.
		if ra, err := e.kernel.Sysctl(plan.Host, "net/ipv6/conf/"+l+"/accept_ra"); err == nil && ra == "1" {
			f.AcceptRA = append(f.AcceptRA, l)
		}
	}
	return f, nil
}

// of forgets the families that no network routes: what the host was like is
// learned anew with the next.
func (f facts) of(networks []berth.Network) facts {
	v4, v6 := families(networks)
	if !v4 {
		f.V4 = nil
	}
	if !v6 {
		f.V6 = nil
	}
	return f
}

// switched are the host's sysctls that Berth found otherwise and switched on,
// each with the value it then has.
func (f facts) switched() map[plan.SysctlKey]string {
	on := map[plan.SysctlKey]string{}
	if f.V4 != nil && f.V4.Was == "0" {
		on[plan.SysctlKey{Place: plan.Host, Path: plan.Forward4}] = "1"
	}
	if f.V6 != nil && f.V6.Was == "0" {
		on[plan.SysctlKey{Place: plan.Host, Path: plan.Forward6}] = "1"
		for _, l := range f.V6.AcceptRA {
			on[acceptRA(l)] = "2"
		}
	}
	return on
}

func acceptRA(link string) plan.SysctlKey {
	return plan.SysctlKey{Place: plan.Host, Path: "net/ipv6/conf/" + link + "/accept_ra"}
}

// base is the plan of the host's own part. networks are all that there are.
func (f facts) base(networks []berth.Network) plan.State {
	if len(networks) == 0 {
		return plan.State{}
	}
	v4, v6 := families(networks)
	var up plan.Uplinks
	if f.V4 != nil {
		up.V4 = f.V4.Uplinks
	}
	if f.V6 != nil {
		up.V6, up.AcceptRA = f.V6.Uplinks, f.V6.AcceptRA
	}
	// A foreign bridge was here before, and is no stranger while it is a
	// network: its sandboxes have a way out.
	isNetwork := func(link string) bool {
		return slices.ContainsFunc(networks, func(n berth.Network) bool { return n.Bridge == link })
	}
	up.V4 = slices.DeleteFunc(slices.Clone(up.V4), isNetwork)
	up.V6 = slices.DeleteFunc(slices.Clone(up.V6), isNetwork)
	return plan.Base(v4, v6, up)
}

// families reports which families any network of the host routes.
func families(networks []berth.Network) (v4, v6 bool) {
	for _, n := range networks {
		if n.Routed() {
			v4, v6 = v4 || n.Has4(), v6 || n.Has6()
		}
	}
	return v4, v6
}

// A world is everything the store wants, read in one transaction.
type world struct {
	facts     facts
	networks  map[string]berth.Network
	sandboxes map[string]berth.Sandbox
	endpoints []berth.Endpoint
	ports     []berth.Port
}

func readWorld(tx *store.Tx) (w world, err error) {
	if w.facts, err = readFacts(tx); err != nil {
		return w, err
	}
	ns, err := tx.Networks()
	if err != nil {
		return w, err
	}
	w.networks = make(map[string]berth.Network, len(ns))
	for _, n := range ns {
		w.networks[n.ID] = n
	}
	sbs, err := tx.Sandboxes()
	if err != nil {
		return w, err
	}
	w.sandboxes = make(map[string]berth.Sandbox, len(sbs))
	for _, s := range sbs {
		w.sandboxes[s.ID] = s
	}
	if w.endpoints, err = tx.Endpoints(); err != nil {
		return w, err
	}
	w.ports, err = tx.Ports()
	return w, err
}

func (w world) list() []berth.Network {
	out := make([]berth.Network, 0, len(w.networks))
	for _, n := range w.networks {
		out = append(out, n)
	}
	return out
}

// left are the addresses of endpoints that leave and that d does not drop: they
// had left the kernel before, as with their namespace, and what the host
// remembers of their connections stayed.
func (w world) left(d plan.Delta) (addrs []netip.Addr) {
	for _, ep := range w.endpoints {
		for _, a := range ep.Addrs {
			k := plan.AddrKey{Link: plan.LinkKey{Place: plan.Place(ep.Sandbox), Name: ep.Interface}, Prefix: a}
			if _, dropped := d.Drop.Addrs[k]; ep.Leaving && !ep.Found && !dropped {
				addrs = append(addrs, a.Addr())
			}
		}
	}
	return addrs
}

// state is the plan of the whole host: the sum of its parts.
func (w world) state() plan.State {
	published := map[string]bool{}
	for _, p := range w.ports {
		published[p.Network] = true
	}
	on := map[string][]berth.Endpoint{}
	of := map[string][]berth.Endpoint{}
	for _, e := range w.endpoints {
		of[e.Sandbox] = append(of[e.Sandbox], e)
		on[e.Network] = append(on[e.Network], e)
	}
	s := w.facts.base(w.list())
	for _, n := range w.networks {
		s.Add(plan.Network(n, published[n.ID]))
	}
	for id, eps := range of {
		atts := make([]plan.Attachment, 0, len(eps))
		for _, e := range eps {
			if n, ok := w.networks[e.Network]; ok {
				atts = append(atts, attach(e, n, on[n.ID], published[n.ID]))
			}
		}
		s.Add(plan.Sandbox(id, atts))
	}
	for ps := range bySandbox(w.ports) {
		s.Add(plan.Ports(w.sandboxes[ps[0].Sandbox].Name, ps...))
	}
	return s
}

// attach is what the plan of a sandbox needs to know of one endpoint.
func attach(e berth.Endpoint, n berth.Network, on []berth.Endpoint, published bool) plan.Attachment {
	a := plan.Attachment{Endpoint: e, Network: n, Published: published && n.Driver == berth.Link}
	if !n.HostEnd {
		for _, o := range on {
			if o.ID != e.ID && !o.Leaving {
				a.Other = &o
			}
		}
	}
	return a
}

// attachments reads what the plan of one sandbox needs.
func attachments(tx *store.Tx, sandbox string) ([]plan.Attachment, error) {
	eps, err := tx.EndpointsOf(sandbox)
	if err != nil {
		return nil, err
	}
	out := make([]plan.Attachment, 0, len(eps))
	for _, e := range eps {
		n, err := tx.Network(e.Network)
		if errors.Is(err, berth.ErrNotFound) {
			continue // removed by force; the endpoint is on its way out
		}
		if err != nil {
			return nil, err
		}
		var on []berth.Endpoint
		published := false
		if n.Driver == berth.Link {
			if on, err = tx.EndpointsOn(n.ID); err != nil {
				return nil, err
			}
			if published, err = tx.HasPorts(n.ID); err != nil {
				return nil, err
			}
		}
		out = append(out, attach(e, n, on, published))
	}
	return out, nil
}

// sandboxState is the plan of some sandboxes as the store has them now.
func sandboxState(tx *store.Tx, ids ...string) (plan.State, error) {
	var s plan.State
	for _, id := range ids {
		atts, err := attachments(tx, id)
		if err != nil {
			return s, err
		}
		s.Add(plan.Sandbox(id, atts))
	}
	return s, nil
}

// scope is where the addresses of a network must be unique: everywhere the
// host sees them.
func scope(n berth.Network) string {
	if n.Routed() {
		return ""
	}
	return n.ID
}

// A touch names the parts of the plan that a change may touch. Ports have no
// part in common with anything, so what is known of them is not read again.
type touch struct {
	base        bool
	networks    []string
	sandboxes   []string
	going, come []berth.Port
}

// state is the plan of the touched parts as the store has them now, with some
// ports.
func (t touch) state(tx *store.Tx, ports []berth.Port) (plan.State, error) {
	s, err := portState(tx, ports)
	if err != nil {
		return s, err
	}
	sbs, err := sandboxState(tx, t.sandboxes...)
	if err != nil {
		return s, err
	}
	s.Add(sbs)
	if t.base {
		f, err := readFacts(tx)
		if err != nil {
			return s, err
		}
		ns, err := tx.Networks()
		if err != nil {
			return s, err
		}
		s.Add(f.base(ns))
	}
	for _, id := range t.networks {
		n, err := tx.Network(id)
		if errors.Is(err, berth.ErrNotFound) {
			continue
		}
		if err != nil {
			return s, err
		}
		published, err := tx.HasPorts(id)
		if err != nil {
			return s, err
		}
		s.Add(plan.Network(n, published))
	}
	return s, nil
}

// around is the Delta that mutate makes to the touched parts.
func (t touch) around(tx *store.Tx, mutate func() error) (plan.Delta, error) {
	before, err := t.state(tx, t.going)
	if err != nil {
		return plan.Delta{}, err
	}
	if err := mutate(); err != nil {
		return plan.Delta{}, err
	}
	after, err := t.state(tx, t.come)
	return plan.Diff(before, after), err
}
