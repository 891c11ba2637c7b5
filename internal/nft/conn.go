// Package nft keeps table inet berth: it makes it, changes its elements, reads
// them back and tells whether the rules are still what they should be. It
// speaks nf_tables over netlink and runs no program.
//
// It knows no networks and no ports: what the elements mean is plan's.
package nft

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"berth"
	"berth/internal/netns"
	"berth/internal/plan"
)

// A Conn is a connection to the firewall of one namespace. It may be used by
// several goroutines.
type Conn struct {
	ns *netns.NS

	mu   sync.Mutex // guards the fields below
	nft  *nftables.Conn
	sock *netlink.Conn // the one beneath nft
}

// buffer is large enough for what one transaction of ours sends and for its
// acknowledgements: 20,000 elements are some 3 MB, and every message of a
// batch is acknowledged.
const buffer = 8 << 20

// Dial opens the firewall of a namespace, which must stay open as long as the
// Conn.
func Dial(ns *netns.NS) (*Conn, error) {
	c := &Conn{ns: ns}
	if err := c.dial(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Conn) dial() error {
	// The socket is opened on a thread inside the namespace: the library's own
	// way there wants a thread for every request.
	err := c.ns.Do(func() error {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			c.sock = s
			return errors.Join(s.SetReadBuffer(buffer), s.SetWriteBuffer(buffer), s.SetOption(netlink.ExtendedAcknowledge, true))
		}))
		c.nft = conn
		return err
	})
	return explain("open the firewall", err)
}

// Close closes the connection. After a deletion it waits for the kernel to
// clean up, some 10 ms.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nft == nil {
		return nil
	}
	conn := c.nft
	c.nft = nil
	return conn.CloseLasting()
}

// ready dials again if the connection was given up.
func (c *Conn) ready() error {
	if c.nft != nil {
		return nil
	}
	return c.dial()
}

// giveUp closes a connection that may be out of step with the kernel.
func (c *Conn) giveUp() {
	if c.nft != nil {
		c.nft.CloseLasting()
		c.nft = nil
	}
}

// Generation is the number of the last commit in the namespace, by whomever.
func (c *Conn) Generation() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return 0, err
	}
	gen, err := c.generation()
	if err != nil {
		c.giveUp()
		return 0, explain("read the firewall's generation", err)
	}
	return gen, nil
}

// perMessage bounds the elements of one message: their list is one attribute
// of 16-bit length, and one that is too long wraps and reports success. The
// longest of ours takes some 130 bytes and its comment 200.
const perMessage = 150

// Apply makes one transaction. What it drops must be there and what it puts
// must not be there with another value: else nothing changes, and the error
// matches [berth.ErrDrifted]. A key under both changes its value.
func (c *Conn) Apply(t plan.Transaction, store string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return err
	}
	if t.Rebuild || t.Remove {
		// Add and delete: a delete that never fails.
		c.nft.AddTable(table)
		c.nft.DelTable(table)
	}
	err := func() error {
		if t.Rebuild {
			if err := build(c.nft, store); err != nil {
				return err
			}
		}
		if err := each(t.Drop, c.nft.SetDeleteElements); err != nil {
			return err
		}
		return each(t.Put, c.nft.SetAddElements)
	}()
	if err != nil {
		c.giveUp() // what is queued must not go with the next
		return fmt.Errorf("change the firewall: %w", err)
	}
	return c.flushed(t, c.nft.Flush())
}

// flushed says what the end of a transaction means.
func (c *Conn) flushed(t plan.Transaction, err error) error {
	if err == nil {
		return nil
	}
	// Only where a message was refused is the connection still in step.
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOENT) {
		c.giveUp()
	}
	if t.Rebuild && len(t.Drop) == 0 {
		// The transaction made all it names: what it missed is in the kernel.
		if lacks := c.lacking(features); len(lacks) > 0 {
			return fmt.Errorf("change the firewall: this kernel has no %s: %w (%w)", strings.Join(lacks, ", "), berth.ErrUnsupported, err)
		}
	}
	return explain("change the firewall", err)
}

// each hands elements to do by set and in portions.
func each(all []plan.Element, do func(*nftables.Set, []nftables.SetElement) error) error {
	portion := make([]nftables.SetElement, 0, min(2*len(all), perMessage+1))
	for i := 0; i < len(all); {
		set := all[i].Set
		portion = portion[:0]
		for ; i < len(all) && all[i].Set == set && len(portion) < perMessage; i++ {
			var err error
			if portion, err = elements(portion, all[i]); err != nil {
				return err
			}
		}
		// A copy without the id, which only a transaction that makes the set may
		// name.
		s := *setNamed(set)
		s.ID = 0
		if err := do(&s, portion); err != nil {
			return err
		}
	}
	return nil
}

// Read returns all elements of the table, none if there is no table.
func (c *Conn) Read() (map[plan.ElemKey]plan.Elem, error) {
	out := map[plan.ElemKey]plan.Elem{}
	err := c.read(func() error {
		clear(out)
		return c.readSets(func(*nftables.Set) bool { return true }, func(k plan.ElemKey, _ nftables.SetElement, e plan.Elem) {
			out[k] = e
		})
	})
	return out, err
}

// A Counter is what was counted at one element.
type Counter struct{ Packets, Bytes uint64 }

// Counters returns what was counted at the networks' borders, by element.
func (c *Conn) Counters() (map[plan.ElemKey]Counter, error) {
	out := map[plan.ElemKey]Counter{}
	err := c.read(func() error {
		clear(out)
		return c.readSets(func(s *nftables.Set) bool { return s.Counter }, func(k plan.ElemKey, el nftables.SetElement, _ plan.Elem) {
			if el.Counter != nil {
				out[k] = Counter{el.Counter.Packets, el.Counter.Bytes}
			}
		})
	})
	return out, err
}

func (c *Conn) read(sets func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ready(); err != nil {
		return err
	}
	err := c.steady(sets)
	if err != nil {
		c.giveUp()
		return explain("read the firewall's elements", err)
	}
	return nil
}

func (c *Conn) readSets(which func(*nftables.Set) bool, put func(plan.ElemKey, nftables.SetElement, plan.Elem)) error {
	there, err := c.kernelSets(table)
	if err != nil {
		return err
	}
	for _, s := range sets {
		// A set of another shape is read by nobody: the table is not exact and
		// is made anew.
		if h, ok := there[s.Name]; !ok || !which(s) || !sameSet(s, h) {
			continue
		}
		all, err := c.elements(s)
		if err == nil {
			err = shapes[s.Name].readAll(s.Name, all, put)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	return nil
}

// elements lists a set. A hash table that grows while it is listed, as it does
// for some milliseconds after many elements were put, shows some twice and some
// not at all, and no flag says so (seen on Linux 6.18: 19,484 of 20,000, and on
// a busy machine 199 of 200). So a set is listed until two listings agree.
func (c *Conn) elements(s *nftables.Set) ([]nftables.SetElement, error) {
	const patience = 20
	distinct := func(all []nftables.SetElement) int {
		seen := make(map[string]struct{}, len(all))
		for _, e := range all {
			seen[string(e.Key)] = struct{}{}
		}
		return len(seen)
	}
	all, err := c.nft.GetSetElements(s)
	if err != nil || s.Interval {
		return all, err
	}
	for range patience {
		again, err := c.nft.GetSetElements(s)
		if err != nil {
			return nil, err
		}
		if n := distinct(again); n == distinct(all) && n == len(again) && len(again) == len(all) {
			return again, nil
		}
		all = again
	}
	return nil, fmt.Errorf("set %s does not stand still: %w", s.Name, berth.ErrDrifted)
}

func byAddress(all []nftables.SetElement) {
	slices.SortFunc(all, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		// An end comes before the start that touches it.
		if a.IntervalEnd == b.IntervalEnd {
			return 0
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
}

// explain says what an error of nf_tables means.
func explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	// The library joins one error for each refused message of a batch, in their
	// order; what comes behind the first follows from it.
	var first unix.Errno
	if !errors.As(err, &first) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	say, is := "", error(nil)
	switch first {
	case unix.EPERM, unix.EACCES:
		say, is = "needs root (CAP_NET_ADMIN)", os.ErrPermission
	case unix.ENOENT, unix.EEXIST:
		say, is = "somebody else changed table inet berth", berth.ErrDrifted
	case unix.ERESTART:
		say, is = "somebody else changed the firewall at the same time", berth.ErrDrifted
	case unix.ENOBUFS, unix.ETIMEDOUT, unix.EAGAIN, unix.EINTR:
		say, is = "the kernel's answer was lost", berth.ErrDrifted
	case unix.EPROTONOSUPPORT:
		say, is = "this kernel has no nf_tables", berth.ErrUnsupported
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT:
		say, is = "this kernel lacks a part of nf_tables", berth.ErrUnsupported
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
	return fmt.Errorf("%s: %s: %w (%w)", doing, say, is, first)
}
