// Package kernel is the one place that changes the kernel, by [Kernel.Apply],
// and that reads what of it is Berth's, by [Kernel.Read]. It speaks rtnetlink
// and nf_tables and writes sysctl files; it runs no program.
//
// What it makes can be recognised without memory: links by their ifalias
// ("berth:…"), routes and rules by their protocol number, elements by their
// table.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/crash"
	"berth/internal/netns"
	"berth/internal/nft"
	"berth/internal/plan"
)

// Options are how a Kernel is opened.
type Options struct {
	// Store is the id of the run store, written into the firewall table.
	Store string
	// Lookup opens a sandbox's namespace; the Kernel closes it. Its error
	// matches [os.ErrNotExist] when the namespace is gone.
	Lookup func(plan.Place) (*netns.NS, error)
}

// A Kernel is the kernel of one host and its sandboxes. Any number of
// goroutines may use it; they take turns.
type Kernel struct {
	o Options

	mu     sync.Mutex // guards the fields below
	host   *place
	places map[plan.Place]*place // open sandboxes, until Release
	nft    *nft.Conn             // nil until needed
	diag   *nl.NetlinkSocket     // nil until needed
	// connections stays open when it was needed: to close any netfilter socket
	// waits for the nft deletions of all, some 10 ms.
	connections map[int]*nl.SocketHandle
}

// Open opens the kernel of a host, whose namespace stays the caller's.
func Open(host *netns.NS, o Options) (*Kernel, error) {
	p, err := enter(plan.Host, host)
	if err != nil {
		return nil, err
	}
	return &Kernel{o: o, host: p, places: map[plan.Place]*place{plan.Host: p}}, nil
}

// Release closes the sandboxes that were looked into. While they are open
// their namespaces live, so whoever changes something calls it in the end.
func (k *Kernel) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.release()
}

func (k *Kernel) release() {
	for name, p := range k.places {
		if name != plan.Host {
			p.close()
			p.ns.Close()
			delete(k.places, name)
		}
	}
}

// Close lets go of the host and its sandboxes.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.release()
	k.host.close()
	if k.diag != nil {
		k.diag.Close()
	}
	for _, s := range k.connections {
		s.Close()
	}
	return k.closeFirewall()
}

func (k *Kernel) firewall() (*nft.Conn, error) {
	if k.nft == nil {
		c, err := nft.Dial(k.host.ns)
		if err != nil {
			return nil, err
		}
		k.nft = c
	}
	return k.nft, nil
}

func (k *Kernel) closeFirewall() error {
	if k.nft == nil {
		return nil
	}
	c := k.nft
	k.nft = nil
	return c.Close()
}

// Generation is the number of the firewall's last commit, by whomever.
func (k *Kernel) Generation() (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	if err != nil {
		return 0, err
	}
	return c.Generation()
}

// Table looks at the firewall's rules.
func (k *Kernel) Table() (nft.Table, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	if err != nil {
		return nft.Table{}, err
	}
	return c.Table()
}

// Counters returns what was counted at the networks' borders.
func (k *Kernel) Counters() (map[plan.ElemKey]nft.Counter, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.firewall()
	if err != nil {
		return nil, err
	}
	return c.Counters()
}

// A place is a namespace with a socket opened in it.
type place struct {
	name  plan.Place
	ns    *netns.NS
	h     *netlink.Handle // nil until needed, see handle
	raw   map[int]*nl.SocketHandle
	index map[string]int // of links made or looked up in this session
}

// receiveBuffer holds what a dump of a thousand links sends at once.
const receiveBuffer = 4 << 20

func enter(name plan.Place, ns *netns.NS) (*place, error) {
	p := &place{name: name, ns: ns, index: map[string]int{}}
	err := ns.Do(func() error {
		s, err := nl.GetNetlinkSocketAt(vnetns.None(), vnetns.None(), unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		// Best effort: without them errors say less, and large dumps repeat.
		_ = s.SetExtAck(true)
		_ = s.SetReceiveBufferSize(receiveBuffer, true)
		p.raw = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket%s: %w", in(name), err)
	}
	return p, nil
}

func (p *place) close() {
	for _, s := range p.raw {
		s.Close()
	}
	if p.h != nil {
		p.h.Close()
	}
}

// handle is for what the netlink library lists and rules well enough. It has a
// socket of its own, which most changes do without.
func (p *place) handle() (*netlink.Handle, error) {
	if p.h != nil {
		return p.h, nil
	}
	err := p.ns.Do(func() (err error) {
		p.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		p.h = nil
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Best effort: large dumps repeat without it.
	_ = p.h.SetSocketReceiveBufferSize(receiveBuffer, true)
	return p.h, nil
}

// request makes a request on the place's own socket.
func (p *place) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r.Sockets = p.raw
	return r
}

// indexOf looks up a link by name.
func (p *place) indexOf(name string) (int, error) {
	if i, ok := p.index[name]; ok {
		return i, nil
	}
	l, err := p.link(name)
	if err != nil {
		return 0, err
	}
	p.index[name] = l.Index
	return l.Index, nil
}

// A session is one Apply or Read.
type session struct {
	k    *Kernel
	made map[plan.LinkKey]plan.PutLink // pairs, by their inside end
}

// session begins with no index of a link believed.
func (k *Kernel) session() session {
	for _, p := range k.places {
		clear(p.index)
	}
	return session{k, map[plan.LinkKey]plan.PutLink{}}
}

// place opens a namespace once. Its error matches [os.ErrNotExist] if it is
// gone.
func (s session) place(name plan.Place) (*place, error) {
	if p, ok := s.k.places[name]; ok {
		return p, nil
	}
	ns, err := s.k.o.Lookup(name)
	if err != nil {
		return nil, err
	}
	p, err := enter(name, ns)
	if err != nil {
		ns.Close()
		return nil, err
	}
	s.k.places[name] = p
	return p, nil
}

// An OpError is a step that the kernel refused.
type OpError struct {
	Op     string // "put link", "set sysctl", …
	Object string
	Place  plan.Place
	Err    error
}

func (e *OpError) Error() string {
	return fmt.Sprintf("%s %s%s: %v", e.Op, e.Object, in(e.Place), e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

func in(p plan.Place) string {
	if p == plan.Host {
		return ""
	}
	return " in sandbox " + string(p[:min(12, len(p))])
}

// Apply does the steps in their order. Each may be done twice. It stops at the
// first that the kernel refuses; what was done stays done.
func (k *Kernel) Apply(ctx context.Context, steps []plan.Step) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.session()
	for i := 0; i < len(steps); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := reflect.TypeOf(steps[i]).Name()
		crash.Point("kernel.before:" + name)
		var err error
		if first, ok := steps[i].(plan.SetSysctl); ok {
			// Neighbours of one place are written on one thread inside it.
			same := []plan.SetSysctl{first}
			for ; i+1 < len(steps); i++ {
				next, ok := steps[i+1].(plan.SetSysctl)
				if !ok || next.Key.Place != first.Key.Place {
					break
				}
				same = append(same, next)
			}
			err = s.setSysctls(same)
		} else {
			err = s.do(steps[i])
		}
		if err != nil {
			return err
		}
		crash.Point("kernel.after:" + name)
	}
	return nil
}

// do does one step.
func (s session) do(step plan.Step) error {
	switch step := step.(type) {
	case plan.Transaction:
		c, err := s.k.firewall()
		if err != nil {
			return err
		}
		return c.Apply(step, s.k.o.Store)
	case plan.PutLink:
		return s.put("put link", step.Key.Name, step.Key.Place, func(p *place) error { return s.putLink(p, step) })
	case plan.UpLink:
		return s.put("bring up link", step.Key.Name, step.Key.Place, func(p *place) error { return s.upLink(p, step.Key.Name) })
	case plan.DropLinks:
		return s.drop("delete links", strings.Join(step.Names, ", "), step.Place, func(p *place) error { return p.dropLinks(step.Names, step.Others) })
	case plan.TuneLink:
		return s.put("change link", step.Key.Name, step.Key.Place, func(p *place) error { return p.tune(step) })
	case plan.PutShape:
		if step.Shape == (plan.Shape{}) {
			return s.drop("let pass on", step.Key.Name, step.Key.Place, func(p *place) error { return ignoreGone(p.putShape(step)) })
		}
		return s.put("limit link", step.Key.Name, step.Key.Place, func(p *place) error { return p.putShape(step) })
	case plan.PutAddr:
		return s.put("put address", step.Key.Prefix.String()+" on "+step.Key.Link.Name, step.Key.Link.Place, func(p *place) error { return p.putAddr(step.Key, step.NoSubnet) })
	case plan.DropAddr:
		return s.drop("drop address", step.Key.Prefix.String()+" on "+step.Key.Link.Name, step.Key.Link.Place, func(p *place) error { return p.dropAddr(step.Key) })
	case plan.PutRoute:
		return s.put("put route", step.Key.Dst.String()+" dev "+step.Key.Dev, step.Key.Place, func(p *place) error {
			if step.Others {
				return p.putOthersRoute(step.Key, step.Route)
			}
			return p.putRoute(step.Key, step.Route)
		})
	case plan.DropRoute:
		return s.drop("drop route", step.Key.Dst.String()+" dev "+step.Key.Dev, step.Key.Place, func(p *place) error { return p.dropRoute(step.Key, step.Route) })
	case plan.PutRule:
		return s.put("put rule", "from "+step.Key.From.String(), step.Key.Place, func(p *place) error { return p.putRule(step.Key) })
	case plan.DropRule:
		return s.drop("drop rule", "from "+step.Key.From.String(), step.Key.Place, func(p *place) error { return p.dropRule(step.Key) })
	case plan.PutNetns:
		return op("make namespace", step.Name, plan.Host, netns.Create(step.Name))
	case plan.DropNetns:
		return op("remove namespace", step.Name, plan.Host, netns.Remove(step.Name))
	case plan.FlushConntrack:
		return s.flush(step)
	}
	panic(fmt.Sprintf("kernel: unknown step %T", step))
}

func op(what, object string, where plan.Place, err error) error {
	if err == nil {
		return nil
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && os.Geteuid() != 0: // EACCES to root: IPv6 is off on the link
		err = fmt.Errorf("it needs root (CAP_NET_ADMIN): %w", err)
	case errors.Is(err, unix.EXFULL):
		err = fmt.Errorf("a bridge takes 1023 ports: %w (%w)", berth.ErrExhausted, err)
	}
	return &OpError{what, object, where, err}
}

// put does a step in its place, which must be there.
func (s session) put(what, object string, where plan.Place, do func(*place) error) error {
	p, err := s.place(where)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("its namespace is gone: %w", berth.ErrNotFound)
	}
	if err == nil {
		err = do(p)
	}
	return op(what, object, where, err)
}

// drop does a step in its place; with the place all that was in it has gone.
func (s session) drop(what, object string, where plan.Place, do func(*place) error) error {
	p, err := s.place(where)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = do(p)
	}
	return op(what, object, where, err)
}

// gone reports whether an error says that the object is not there.
func gone(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL, os.ErrNotExist} {
		if errors.Is(err, e) {
			return true
		}
	}
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}
