package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	bolt "go.etcd.io/bbolt"

	"berth"
)

// A record of the bucket ports holds all ports of one protocol and host port,
// by host address. Conflicts are decided there, and a port of both families is
// one record. There may be tens of thousands in one transaction, so they are
// not JSON, which took most of its time.

// hostPort is the key of a record.
func hostPort(proto berth.Protocol, port uint16) []byte {
	return binary.BigEndian.AppendUint16(append([]byte(proto), 0), port)
}

// leadsTo opens the keys of an endpoint in the index of ports.
func leadsTo(p berth.Port) []byte { return key(p.Network, p.Sandbox, p.Interface, "") }

// byKey is the order of ports.
func byKey(a, b berth.Port) int {
	if a.Protocol != b.Protocol {
		return cmp.Compare(a.Protocol, b.Protocol)
	}
	if a.HostPort != b.HostPort {
		return cmp.Compare(a.HostPort, b.HostPort)
	}
	return a.HostIP.Compare(b.HostIP)
}

func sameEndpoint(a, b berth.Port) bool {
	return a.Sandbox == b.Sandbox && a.Network == b.Network && a.Interface == b.Interface
}

// encodePorts writes the ports of one record. A port that leads to the endpoint
// of the one before it has an empty sandbox.
func encodePorts(ps []berth.Port) []byte {
	out := make([]byte, 0, 192)
	field := func(b []byte) { out = append(binary.AppendUvarint(out, uint64(len(b))), b...) }
	text := func(s string) { out = append(binary.AppendUvarint(out, uint64(len(s))), s...) }
	for i, p := range ps {
		field(p.HostIP.AsSlice())
		field(p.To.Addr().AsSlice())
		out = binary.BigEndian.AppendUint16(out, p.To.Port())
		if i > 0 && sameEndpoint(p, ps[i-1]) {
			text("")
			continue
		}
		text(p.Sandbox)
		text(p.Network)
		text(p.Interface)
	}
	return out
}

// A portReader decodes records. Most ports lead where the one before them did,
// so it makes each name once.
type portReader struct {
	b    bucket
	c    *bolt.Cursor // allocates once, and every Get anew
	last berth.Port
	rest []byte
	ok   bool
}

func (tx *Tx) portReader() *portReader {
	if tx.records == nil {
		tx.records = &portReader{b: tx.runBucket(ports)}
		if b := tx.records.b.b; b != nil {
			tx.records.c = b.Cursor()
		}
	}
	return tx.records
}

// get returns the record at a key, nil if there is none.
func (r *portReader) get(key []byte) []byte {
	if r.c == nil {
		return nil
	}
	r.b.tx.at = r.b.f.layout
	if k, v := r.c.Seek(key); bytes.Equal(k, key) {
		return v
	}
	return nil
}

func (r *portReader) bytes(n uint64) []byte {
	if uint64(len(r.rest)) < n {
		r.ok = false
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *portReader) field() []byte {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.ok = false
		return nil
	}
	r.rest = r.rest[size:]
	return r.bytes(n)
}

func (r *portReader) addr() netip.Addr {
	a, ok := netip.AddrFromSlice(r.field())
	r.ok = r.ok && ok
	return a
}

func (r *portReader) text(into *string) {
	if b := r.field(); string(b) != *into {
		*into = string(b)
	}
}

// append decodes the record at a key behind out.
func (r *portReader) append(out []berth.Port, key, value []byte) ([]berth.Port, error) {
	proto, port, _ := bytes.Cut(key, []byte{0})
	r.rest, r.ok = value, len(port) == 2 && len(value) > 0
	p := &r.last
	if string(proto) != string(p.Protocol) {
		p.Protocol = berth.Protocol(proto)
	}
	for first := true; r.ok && len(r.rest) > 0; first = false {
		p.HostPort = binary.BigEndian.Uint16(port)
		p.HostIP = r.addr()
		to := r.addr()
		if n := r.bytes(2); r.ok {
			p.To = netip.AddrPortFrom(to, binary.BigEndian.Uint16(n))
		}
		if r.ok && !first && len(r.rest) > 0 && r.rest[0] == 0 {
			r.rest = r.rest[1:]
		} else {
			r.text(&p.Sandbox)
			r.text(&p.Network)
			r.text(&p.Interface)
		}
		out = append(out, *p)
	}
	if !r.ok {
		return nil, r.b.f.damaged(fmt.Sprintf("the record of port %q", key))
	}
	return out, nil
}

// Ports returns all ports, by protocol, port and address.
func (tx *Tx) Ports() (out []berth.Port, err error) {
	r := tx.portReader()
	for k, v := range r.b.scan(nil) {
		if out, err = r.append(out, k, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// PortsAt returns the ports published at one host port, at any address.
func (tx *Tx) PortsAt(proto berth.Protocol, port uint16) ([]berth.Port, error) {
	k, r := hostPort(proto, port), tx.portReader()
	if v := r.get(k); v != nil {
		return r.append(nil, k, v)
	}
	return nil, nil
}

// PortsOf returns the ports of a sandbox, by protocol, port and address.
func (tx *Tx) PortsOf(sandbox string) (out []berth.Port, err error) {
	eps, err := tx.EndpointsOf(sandbox)
	if err != nil {
		return nil, err
	}
	for _, e := range eps {
		if out, err = tx.portsTo(out, e); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, byKey)
	return out, nil
}

// PortsTo returns the ports that lead to an endpoint.
func (tx *Tx) PortsTo(e berth.Endpoint) ([]berth.Port, error) { return tx.portsTo(nil, e) }

func (tx *Tx) portsTo(out []berth.Port, e berth.Endpoint) ([]berth.Port, error) {
	r := tx.portReader()
	p := berth.Port{Sandbox: e.Sandbox, Network: e.Network, Interface: e.Interface}
	prefix := leadsTo(p)
	for k := range tx.runBucket(portsOn).scan(prefix) {
		had := len(out)
		for record, v := range r.b.scan(k[len(prefix):]) {
			from := len(out)
			all, err := r.append(out, record, v)
			if err != nil {
				return nil, err
			}
			out = append(all[:from], slices.DeleteFunc(all[from:], func(a berth.Port) bool { return !sameEndpoint(a, p) })...)
		}
		if len(out) == had {
			return nil, r.b.f.damaged("a port is in an index and not among the ports")
		}
	}
	return out, nil
}

// HasPorts reports whether any port leads to a network, or to a sandbox's
// interface on it: endpoint is nothing, or both.
func (tx *Tx) HasPorts(network string, endpoint ...string) (bool, error) {
	prefix := key(append(append([]string{network}, endpoint...), "")...)
	for range tx.runBucket(portsOn).scan(prefix) {
		return true, nil
	}
	return false, nil
}

// PutPorts records ports, each in place of the one that has its key.
func (tx *Tx) PutPorts(ps ...berth.Port) error {
	return tx.eachRecord(ps, func(had, ps []berth.Port) []berth.Port {
		if len(had) == 0 {
			return ps
		}
		out := append(without(had, ps), ps...)
		slices.SortFunc(out, byKey)
		return out
	})
}

// DeletePorts forgets the ports that have the keys of ps. That one is not there
// is no error.
func (tx *Tx) DeletePorts(ps ...berth.Port) error { return tx.eachRecord(ps, without) }

// without is had, less the keys of ps.
func without(had, ps []berth.Port) []berth.Port {
	var out []berth.Port
	for _, h := range had {
		if !slices.ContainsFunc(ps, func(p berth.Port) bool { return p.PortKey == h.PortKey }) {
			out = append(out, h)
		}
	}
	return out
}

func ascending(ps []berth.Port) bool {
	for i := 1; i < len(ps); i++ {
		if byKey(ps[i-1], ps[i]) >= 0 {
			return false
		}
	}
	return true
}

// eachRecord changes the records of ps: change is given what one has and those
// of ps that belong in it, and returns what it shall have.
func (tx *Tx) eachRecord(ps []berth.Port, change func(had, ps []berth.Port) []berth.Port) error {
	if !ascending(ps) {
		// A page of bbolt is one slice until the commit, however long, so what
		// comes out of order is slow.
		ps = slices.SortedFunc(slices.Values(ps), byKey)
		ps = slices.CompactFunc(ps, func(a, b berth.Port) bool { return a.PortKey == b.PortKey })
	}
	r := tx.portReader()
	x := portIndex{b: tx.runBucket(portsOn)}
	var had []berth.Port
	for len(ps) > 0 {
		n := 1
		for n < len(ps) && ps[n].HostPort == ps[0].HostPort && ps[n].Protocol == ps[0].Protocol {
			n++
		}
		k := hostPort(ps[0].Protocol, ps[0].HostPort)
		old := r.get(k)
		had = had[:0]
		if old != nil {
			var err error
			if had, err = r.append(had, k, old); err != nil {
				return err
			}
		}
		now := change(had, ps[:n])
		if err := x.move(k, had, now); err != nil {
			return err
		}
		var value []byte
		if len(now) > 0 {
			value = encodePorts(now)
		}
		if err := r.b.replace(k, old, value); err != nil {
			return err
		}
		ps = ps[n:]
	}
	return x.flush()
}

// A portIndex counts the ports that lead to an endpoint, for each block of 256
// host ports: an entry for each port would double the work of ten thousand.
type portIndex struct {
	b     bucket
	block []byte     // the one that is being changed
	moved []movement // within it
}

// A movement is how many more ports lead to the endpoint of a port.
type movement struct {
	to berth.Port
	n  int
}

// move says of a record where its ports led and where they lead now.
func (x *portIndex) move(record []byte, had, now []berth.Port) error {
	if block := record[:len(record)-1]; !bytes.Equal(block, x.block) {
		if err := x.flush(); err != nil {
			return err
		}
		x.block, x.moved = block, x.moved[:0]
	}
	for _, p := range had {
		x.add(p, -1)
	}
	for _, p := range now {
		x.add(p, 1)
	}
	return nil
}

func (x *portIndex) add(p berth.Port, n int) {
	for i := range x.moved {
		if sameEndpoint(x.moved[i].to, p) {
			x.moved[i].n += n
			return
		}
	}
	x.moved = append(x.moved, movement{p, n})
}

// flush writes the counts of the block.
func (x *portIndex) flush() error {
	for _, m := range x.moved {
		k := append(leadsTo(m.to), x.block...)
		old := x.b.get(k)
		count, size := binary.Uvarint(old)
		now := int64(count) + int64(m.n)
		if old != nil && size != len(old) || now < 0 {
			return x.b.f.damaged("a port is not in its index")
		}
		var value []byte
		if now > 0 {
			value = binary.AppendUvarint(nil, uint64(now))
		}
		if err := x.b.replace(k, old, value); err != nil {
			return err
		}
	}
	return nil
}
