package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"berth"
	"berth/internal/ipam"
	"berth/internal/kernel"
	"berth/internal/plan"
	"berth/internal/store"
)

// CreateNetwork makes a network. Its errors match [berth.ErrExists] for a name
// that is taken, [berth.ErrConflict] for a subnet that overlaps another,
// [berth.ErrExhausted] when no pool has one left.
func (e *Engine) CreateNetwork(ctx context.Context, spec NetworkSpec) (berth.Network, error) {
	n, err := e.createNetwork(ctx, spec)
	if err != nil {
		return n, fmt.Errorf("create network %s: %w", cut(spec.Name), err)
	}
	return n, nil
}

func (e *Engine) createNetwork(ctx context.Context, spec NetworkSpec) (berth.Network, error) {
	n, err := draft(spec)
	if err != nil {
		return n, err
	}
	var final berth.Network
	mtu := n.MTU
	err = e.do(ctx, func() ([]lock, error) { return []lock{baseLock}, nil }, func(ctx context.Context) error {
		// Asked again where it counts; here, so that its own bridge is not what
		// the user is told of.
		if o, err := e.network(ctx, n.Name); err == nil && o.Name == n.Name {
			return errNetworkExists
		}
		host, err := e.survey()
		if err != nil {
			return err
		}
		if err := e.complete(&n, mtu, host); err != nil {
			return err
		}
		return e.commit(ctx, func(tx *store.Tx) (plan.Delta, error) {
			t := touch{base: true, networks: []string{n.ID}}
			return t.around(tx, func() error {
				final = n
				return e.admitNetwork(tx, &final, spec, host)
			})
		}, func(tx *store.Tx) error { return tx.DeleteNetwork(n.ID) })
	})
	return final, err
}

// baseLock is held by what may change the host's own part, which comes with the
// first network and goes with the last: else the table that one makes is the
// one that the other removes.
var baseLock = lock{store.LockNetwork, "base", true}

var errNetworkExists = fmt.Errorf("there is a network of that name: %w", berth.ErrExists)

// draft turns a spec into a network, as far as that needs no look at the host.
func draft(spec NetworkSpec) (berth.Network, error) {
	n := berth.Network{
		Name: spec.Name, Driver: spec.Driver, Created: time.Now().UTC(), Internal: spec.Internal,
		HostEnd: true, Masquerade: true, Options: spec.Options, Labels: spec.Labels,
	}
	if n.Driver == "" {
		n.Driver = berth.Bridge
	}
	if n.Driver != berth.Bridge && n.Driver != berth.Link {
		return n, fmt.Errorf("no driver %s; there are bridge and link: %w", cut(string(n.Driver)), berth.ErrInvalid)
	}
	if err := berth.ValidName("network", n.Name); err != nil {
		return n, err
	}
	if err := setOptions(&n, spec.Options); err != nil {
		return n, err
	}
	if err := agree(n); err != nil {
		return n, err
	}
	if spec.NoIPv4 && !spec.IPv6 && !slices.ContainsFunc(spec.Subnets, func(s berth.Subnet) bool { return s.Prefix.Addr().Is6() }) {
		return n, fmt.Errorf("with --ipv4=false it needs --ipv6: %w", berth.ErrInvalid)
	}
	for _, s := range spec.Subnets {
		if spec.NoIPv4 && s.Prefix.Addr().Is4() {
			return n, fmt.Errorf("subnet %s with --ipv4=false: %w", s.Prefix, berth.ErrInvalid)
		}
	}
	n.ID = randomID()
	return n, nil
}

// A survey is what a new network must know of the host.
type survey struct {
	links  []kernel.LinkInfo
	routes []netip.Prefix
	mtu    int
	ulaID  string
}

func (e *Engine) survey() (survey, error) {
	var s survey
	var err error
	if s.links, err = e.kernel.Links(plan.Host); err != nil {
		return s, err
	}
	if s.routes, err = e.kernel.Routes(); err != nil {
		return s, err
	}
	if s.mtu, err = e.kernel.DefaultMTU(); err != nil {
		return s, err
	}
	id, err := os.ReadFile("/etc/machine-id")
	if err == nil {
		s.ulaID = strings.TrimSpace(string(id))
	}
	return s, nil
}

// complete finds the network's MTU, if none was asked for, and its bridge.
func (e *Engine) complete(n *berth.Network, mtu int, host survey) error {
	if n.MTU = mtu; mtu == 0 {
		n.MTU = host.mtu
	}
	if n.Driver != berth.Bridge {
		return nil
	}
	asked := n.Bridge != ""
	if !asked {
		n.Bridge = bridgeName(n.Name)
	}
	n.Owned = true
	for _, l := range host.links {
		if l.Name != n.Bridge {
			continue
		}
		switch {
		case !asked || strings.HasPrefix(l.Alias, plan.AliasPrefix):
			return fmt.Errorf("there is a link %s already: %w", l.Name, berth.ErrExists)
		case l.Kind == "": // hardware, or lo
			return fmt.Errorf("link %s is no bridge: %w", l.Name, berth.ErrInvalid)
		case l.Kind != "bridge":
			return fmt.Errorf("link %s is of kind %s, no bridge: %w", l.Name, l.Kind, berth.ErrInvalid)
		}
		if n.Owned = false; n.Promisc {
			return fmt.Errorf("option promisc: bridge %s is not Berth's to change: %w", l.Name, berth.ErrInvalid)
		}
		if n.MTU = l.MTU; mtu != 0 {
			n.MTU = mtu
		}
		n.ForeignAddrs = nil
		for _, p := range l.Addrs {
			if !p.Addr().IsLinkLocalUnicast() {
				n.ForeignAddrs = append(n.ForeignAddrs, p)
			}
		}
	}
	return nil
}

// bridgeName is bt-NAME, cut to a link's 15 characters with a hash when long.
func bridgeName(name string) string {
	if s := "bt-" + name; validLinkName(s) {
		return s
	}
	return "bt-" + name[:7] + "-" + hexOf("bridge", name)[:4]
}

// admitNetwork chooses the subnets and records the network and what the host
// was like before it.
func (e *Engine) admitNetwork(tx *store.Tx, n *berth.Network, spec NetworkSpec, host survey) error {
	all, err := tx.Networks()
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.Name == n.Name {
			return errNetworkExists
		}
		if n.Bridge != "" && o.Bridge == n.Bridge {
			return fmt.Errorf("bridge %s belongs to network %s: %w", n.Bridge, o.Name, berth.ErrConflict)
		}
	}
	if host.ulaID == "" {
		if host.ulaID, err = storedHostID(tx); err != nil {
			return err
		}
	}
	if n.Subnets, err = e.subnets(*n, spec, all, host); err != nil {
		return err
	}
	f, err := readFacts(tx)
	if err != nil {
		return err
	}
	v4, v6 := families(append(all, *n))
	learned, err := e.learn(f, v4, v6)
	if err != nil {
		return err
	}
	if learned != f {
		if err := writeFacts(tx, learned); err != nil {
			return err
		}
	}
	return tx.PutNetwork(*n)
}

// storedHostID is what the host's ULA is derived from where there is no
// machine-id(5).
func storedHostID(tx *store.Tx) (string, error) {
	id, err := tx.RootMeta("host-id")
	if err != nil || len(id) > 0 {
		return string(id), err
	}
	s := randomID()
	return s, tx.SetRootMeta("host-id", []byte(s))
}

// subnets chooses the subnets of n: those asked for, those its foreign bridge
// has, or the next free ones.
func (e *Engine) subnets(n berth.Network, spec NetworkSpec, all []berth.Network, host survey) ([]berth.Subnet, error) {
	taken := slices.Clone(host.routes)
	for _, o := range all {
		for _, s := range o.Subnets {
			taken = append(taken, s.Prefix)
		}
	}
	var out []berth.Subnet
	var has4, has6 bool
	asked := spec.Subnets
	if len(asked) == 0 {
		for _, p := range n.ForeignAddrs {
			if p.IsSingleIP() { // an address of the bridge that has no subnet
				continue
			}
			asked = append(asked, berth.Subnet{Prefix: p.Masked(), Gateway: p.Addr()})
		}
	}
	for _, s := range asked {
		s, err := e.subnet(n, s, all, taken, host)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
		taken = append(taken, s.Prefix)
		has4, has6 = has4 || s.Prefix.Addr().Is4(), has6 || s.Prefix.Addr().Is6()
	}
	if !has4 && !spec.NoIPv4 && !(has6 && len(spec.Subnets) > 0 && !spec.IPv6) {
		p, err := ipam.NextSubnet(e.pools(), taken)
		if err != nil {
			return nil, err
		}
		out = append([]berth.Subnet{withGateway(berth.Subnet{Prefix: p})}, out...)
	}
	if !has6 && spec.IPv6 {
		p, err := ipam.ULA(host.ulaID, taken)
		if err != nil {
			return nil, err
		}
		out = append(out, withGateway(berth.Subnet{Prefix: p}))
	}
	return out, nil
}

func withGateway(s berth.Subnet) berth.Subnet {
	if !s.Gateway.IsValid() {
		s.Gateway = ipam.Gateway(s)
	}
	return s
}

// subnet checks one subnet that was asked for, or finds one of its size.
func (e *Engine) subnet(n berth.Network, s berth.Subnet, all []berth.Network, taken []netip.Prefix, host survey) (berth.Subnet, error) {
	if s.Prefix.Addr().IsUnspecified() && s.Prefix.Bits() > 0 {
		pools := slices.Concat(e.pools(), []ipam.Pool{ipam.ULAPool(host.ulaID)})
		p, err := ipam.SubnetOfSize(pools, s.Prefix.Bits(), s.Prefix.Addr().Is6(), taken)
		if err != nil {
			return s, err
		}
		s.Prefix = p
	}
	s = withGateway(s)
	if err := ipam.CheckSubnet(s); err != nil {
		return s, err
	}
	ends := 1
	if !n.HostEnd {
		ends = 2
	}
	if err := ipam.CheckRoom(s, ends); err != nil {
		return s, err
	}
	for _, o := range all {
		// The ends of links are told apart by their own addresses; two sandboxes
		// joined by a wire are not seen by the host at all.
		if !o.Routed() || !n.Routed() || o.Driver == berth.Link && n.Driver == berth.Link {
			continue
		}
		for _, t := range o.Subnets {
			if t.Prefix.Overlaps(s.Prefix) {
				return s, fmt.Errorf("subnet %s overlaps %s of network %s: %w", s.Prefix, t.Prefix, o.Name, berth.ErrConflict)
			}
		}
	}
	if !n.Routed() {
		return s, nil
	}
	for _, l := range host.links {
		if l.Name == n.Bridge || strings.HasPrefix(l.Alias, plan.AliasPrefix) {
			continue
		}
		for _, p := range l.Addrs {
			// The ends of links are told apart by their own addresses, also from
			// those of pairs that others made.
			if n.Driver == berth.Link && l.Kind == string(plan.VethLink) && p.IsSingleIP() {
				continue
			}
			if p.Masked().Overlaps(s.Prefix) && !p.Addr().IsLinkLocalUnicast() {
				return s, fmt.Errorf("subnet %s overlaps %s of link %s: %w", s.Prefix, p, l.Name, berth.ErrConflict)
			}
		}
	}
	return s, nil
}

// RemoveNetwork removes a network. While sandboxes that live are connected it
// returns an error that matches [berth.ErrInUse] and names them, unless it is
// told to disconnect them.
func (e *Engine) RemoveNetwork(ctx context.Context, ref string, o RemoveOptions) error {
	if err := e.removeNetwork(ctx, ref, o); err != nil {
		return fmt.Errorf("remove network %s: %w", cut(ref), err)
	}
	return nil
}

func (e *Engine) removeNetwork(ctx context.Context, ref string, o RemoveOptions) error {
	n, err := e.network(ctx, ref)
	if errors.Is(err, berth.ErrNotFound) {
		return e.do(ctx, nil, func(context.Context) error { return err })
	}
	if err != nil {
		return err
	}
	if err := e.vacate(ctx, n, o); err != nil {
		return err
	}
	locks := func() ([]lock, error) { return []lock{baseLock, {store.LockNetwork, n.ID, true}}, nil }
	var was facts
	err = e.do(ctx, locks, func(ctx context.Context) error {
		var d plan.Delta
		err := e.store.Update(ctx, func(tx *store.Tx) (err error) {
			if was, err = readFacts(tx); err != nil {
				return err
			}
			eps, err := tx.EndpointsOn(n.ID)
			if err != nil {
				return err
			}
			if len(eps) > 0 {
				return errAgain // connected since it was vacated
			}
			d, err = touch{base: true, networks: []string{n.ID}}.around(tx, func() error { return tx.DeleteNetwork(n.ID) })
			return err
		})
		if err != nil {
			return err
		}
		e.keepForwarding(&d, was, e.o.Notice)
		if err := e.apply(ctx, d); err != nil {
			return &refusal{err: err}
		}
		return nil
	})
	if errors.Is(err, errAgain) {
		return fmt.Errorf("a sandbox was connected meanwhile: %w", berth.ErrInUse)
	}
	if err != nil {
		return err
	}
	// Best effort: a lock file without its network is only a file.
	_ = e.store.Forget(store.LockNetwork, n.ID)
	return e.forgetFacts(ctx)
}

// forgetFacts forgets what the host was like before the first network once the
// last has gone: it is learned anew with the next.
func (e *Engine) forgetFacts(ctx context.Context) error {
	return e.store.Update(ctx, func(tx *store.Tx) error {
		f, err := readFacts(tx)
		if err != nil || f == (facts{}) {
			return err
		}
		all, err := tx.Networks()
		if err != nil {
			return err
		}
		return writeFacts(tx, f.of(all))
	})
}

// vacate disconnects what may be disconnected: the dead always, the living if
// told so.
func (e *Engine) vacate(ctx context.Context, n berth.Network, o RemoveOptions) error {
	var eps []berth.Endpoint
	sbs := map[string]berth.Sandbox{}
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		if eps, err = tx.EndpointsOn(n.ID); err != nil {
			return err
		}
		for _, ep := range eps {
			sb, err := tx.Sandbox(ep.Sandbox)
			if ignore(err, berth.ErrNotFound) != nil {
				return err
			}
			sbs[ep.Sandbox] = sb
		}
		return nil
	})
	if err != nil || len(eps) == 0 {
		return err
	}
	var living, ids []string
	for id, sb := range sbs {
		if alive(sb) {
			living = append(living, sb.Name)
		}
		ids = append(ids, id)
	}
	if len(living) > 0 && !o.Force {
		slices.Sort(living)
		if len(living) > 10 {
			living = append(living[:10], fmt.Sprintf("and %d more", len(living)-10))
		}
		return fmt.Errorf("connected to it: %s: %w", strings.Join(living, ", "), berth.ErrInUse)
	}
	slices.Sort(ids)
	return e.leave(ctx, ids, func(ep berth.Endpoint) bool { return ep.Network == n.ID })
}

// Network returns a network by name, by id, or by the beginning of its id,
// without a look at its endpoints.
func (e *Engine) Network(ctx context.Context, ref string) (berth.Network, error) {
	n, err := e.network(ctx, ref)
	if err != nil {
		return n, fmt.Errorf("network %s: %w", cut(ref), err)
	}
	return n, nil
}

// network looks a network up by name, id or the beginning of its id. Its error
// leaves it to the caller to say which.
func (e *Engine) network(ctx context.Context, ref string) (n berth.Network, err error) {
	err = e.store.View(ctx, func(tx *store.Tx) error {
		n, err = networkOf(tx, ref)
		return err
	})
	return n, err
}

// networkOf is tx.Network for what a user typed. Whoever asks says the name.
func networkOf(tx *store.Tx, ref string) (berth.Network, error) {
	n, err := tx.Network(ref)
	if errors.Is(err, berth.ErrNotFound) {
		err = fmt.Errorf("no such network: %w", berth.ErrNotFound)
	}
	return n, err
}

// Networks returns all networks with their endpoints, sorted by name.
func (e *Engine) Networks(ctx context.Context) ([]NetworkDetail, error) {
	var out []NetworkDetail
	err := e.store.View(ctx, func(tx *store.Tx) error {
		ns, err := tx.Networks()
		if err != nil {
			return err
		}
		for _, n := range ns {
			d, err := networkDetail(tx, n)
			if err != nil {
				return err
			}
			out = append(out, d)
		}
		return nil
	})
	slices.SortFunc(out, func(a, b NetworkDetail) int { return strings.Compare(a.Name, b.Name) })
	return out, err
}

// InspectNetwork returns one network with its endpoints, their ports, and what
// was refused at its border.
func (e *Engine) InspectNetwork(ctx context.Context, ref string) (NetworkDetail, error) {
	var d NetworkDetail
	err := e.store.View(ctx, func(tx *store.Tx) error {
		n, err := networkOf(tx, ref)
		if err != nil {
			return err
		}
		d, err = networkDetail(tx, n)
		return err
	})
	if err != nil {
		return d, fmt.Errorf("inspect network %s: %w", cut(ref), err)
	}
	d.Refused, err = e.refusals(d)
	return d, err
}

func networkDetail(tx *store.Tx, n berth.Network) (NetworkDetail, error) {
	d := NetworkDetail{Network: n, Endpoints: []EndpointDetail{}}
	eps, err := tx.EndpointsOn(n.ID)
	if err != nil {
		return d, err
	}
	for _, ep := range eps {
		if ep.Leaving {
			continue
		}
		ports, err := tx.PortsTo(ep)
		if err != nil {
			return d, err
		}
		sb, err := tx.Sandbox(ep.Sandbox)
		if ignore(err, berth.ErrNotFound) != nil {
			return d, err
		}
		d.Endpoints = append(d.Endpoints, EndpointDetail{Endpoint: ep, SandboxName: sb.Name, NetworkName: n.Name, Ports: ports})
	}
	return d, nil
}

// refusals sums the counters of a network's border by reason.
func (e *Engine) refusals(d NetworkDetail) ([]Refusal, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	counters, err := e.kernel.Counters()
	if err != nil {
		return nil, fmt.Errorf("read the counters of network %s: %w", d.Name, err)
	}
	eps := make([]plan.Attachment, 0, len(d.Endpoints))
	for _, ep := range d.Endpoints {
		eps = append(eps, attach(ep.Endpoint, d.Network, nil, false))
	}
	own := plan.Network(d.Network, false)
	for _, a := range eps {
		if d.Driver == berth.Link && d.HostEnd {
			own.Add(plan.Sandbox(a.Endpoint.Sandbox, []plan.Attachment{a}))
		}
	}
	reasons := map[string]string{"refused_from": "leaving", "refused_to": "entering", "shield4": "direct", "shield6": "direct"}
	sum := map[string]Refusal{}
	for k := range own.Elems {
		if reason, ok := reasons[k.Set]; ok {
			r := sum[reason]
			r.Packets += counters[k].Packets
			r.Bytes += counters[k].Bytes
			sum[reason] = r
		}
	}
	var out []Refusal
	for _, reason := range []string{"leaving", "entering", "direct"} {
		r := sum[reason]
		r.Reason = reason
		out = append(out, r)
	}
	return out, nil
}
