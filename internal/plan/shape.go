package plan

import "berth"

// TurnstileOf is the name of the turnstile of an endpoint's host end.
func TurnstileOf(endpointID string) string { return HostEnd(endpointID) + "-out" }

// shapes adds what holds an endpoint back, both ways at its host end: a queue
// inside would be in the hands of the sandbox, which goes round it with a
// packet socket (PACKET_QDISC_BYPASS) even where it may not change it.
func (s *State) shapes(out LinkKey, n berth.Network, e berth.Endpoint) {
	if e.Rates == (berth.Rates{}) {
		return
	}
	end := queue(e.Rates.In, n.MTU)
	if e.Rates.Out.Bits > 0 {
		end.Divert = TurnstileOf(e.ID)
		t := LinkKey{out.Place, end.Divert}
		s.link(t, Link{Kind: Turnstile, Alias: Alias(e.ID), MTU: n.MTU, Up: true, NoLinkLocal: true})
		s.shape(t, queue(e.Rates.Out, n.MTU))
	}
	s.shape(out, end)
}

// queue turns a rate into the numbers of a queue.
func queue(r berth.Rate, mtu int) Shape {
	rate := r.Bits / 8
	if rate == 0 {
		return Shape{}
	}
	// The kernel turns tokens back into packets when its clock says so: 10 ms
	// is enough for one that ticks 100 times a second. A large packet of TCP
	// passes whole where it fits.
	burst := max(rate/100, 32<<10)
	if r.Burst > 0 {
		burst = r.Burst / 8
	}
	// One packet must fit, with a header of Ethernet and a VLAN's. The kernel
	// counts a burst in ticks of 64 ns, 32 bits of them, and in 32 bits.
	const frame = 18
	g := granule(rate)
	burst = (max(burst, uint64(mtu+frame)) + g - 1) / g * g
	most := uint64(1 << 31)
	if rate < 1<<31/270 {
		most = rate * 270
	}
	if burst > most {
		burst = most &^ (g - 1)
	}
	// 50 ms of waiting, or ten packets: a stream of TCP needs so much to be
	// steady.
	wait := max(rate/20, uint64(10*(mtu+frame)))
	return Shape{Rate: rate, Burst: uint32(burst), Queue: uint32(min(burst+wait, 1<<32-1))}
}

// granule is what bursts are multiples of: the kernel keeps a burst as a time
// in ticks of 64 ns, and what it gives back must be what it was given.
func granule(rate uint64) uint64 {
	g := uint64(1 << 10)
	for rate/g > 1<<22 {
		g *= 2
	}
	return g
}

// RoundBurst returns the burst of a queue nearest to one that was read from
// the kernel's ticks.
func RoundBurst(rate, burst uint64) uint64 {
	g := granule(rate)
	return max(g, (burst+g/2)/g*g)
}

// dropShapes takes away what holds back, on links that stay. What diverts to a
// turnstile goes before the turnstile: packets sent to one that is not there
// are lost.
func (b *builder) dropShapes() {
	for _, k := range sorted(b.d.Drop.Shapes, compareLink) {
		was, want := b.d.Drop.Shapes[k], b.d.Put.Shapes[k]
		if !b.linkGoes(k) && (want == (Shape{}) || b.straightens(k)) {
			b.add(PutShape{k, want, was})
		}
	}
}

// straightens reports whether what comes in by k is no longer diverted.
func (b *builder) straightens(k LinkKey) bool {
	return b.d.Drop.Shapes[k].Divert != "" && b.d.Put.Shapes[k].Divert == ""
}

// putShapes comes while new links are down at their inside: nothing passes
// that is not held back. A turnstile is up before anything is diverted to it.
func (b *builder) putShapes(up map[LinkKey]bool) {
	var diverted []Step
	for _, k := range sorted(b.d.Put.Shapes, compareLink) {
		step := PutShape{k, b.d.Put.Shapes[k], b.d.Drop.Shapes[k]}
		switch {
		case b.straightens(k):
		case step.Shape.Divert != "":
			diverted = append(diverted, step)
		default:
			b.add(step)
		}
	}
	for _, k := range sorted(up, compareLink) {
		if up[k] && b.d.Put.Links[k].Kind == Turnstile {
			b.add(UpLink{k})
			delete(up, k)
		}
	}
	b.add(diverted...)
}
