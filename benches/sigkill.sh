#!/bin/bash
# Kills 'blkpatch patch' with SIGKILL at random instants on a loop device, lets it finish, and compares all bytes.
#
#   benches/sigkill.sh OLD NEW WORKDIR [KILLS]          needs root, losetup, and twice the space of an image
#
# Rounds go from OLD to NEW and back by turns, each with its own delta, so that the device need not be rewritten between
# them (deltas that WORKDIR has already are used). In a round patch is killed one to eight times, then runs to its end. BLKPATCH names the program (default: the
# release build), SEED makes other instants. OLD and NEW are only read; they must be of the same length.
set -euo pipefail

old=$1 new=$2 work=$3 kills=${4:-200}
blkpatch=${BLKPATCH:-$(dirname "$0")/../target/release/blkpatch}
RANDOM=${SEED:-1}

[ "$(stat -Lc %s "$old")" = "$(stat -Lc %s "$new")" ] || { echo "the images differ in length" >&2; exit 2; }
mkdir -p "$work"
image=$work/sigkill.device log=$work/sigkill.log
: >"$log"
device=
cleanup() {
  # shellcheck disable=SC2046
  kill -KILL $(jobs -p) 2>/dev/null || true
  [ -z "$device" ] || losetup -d "$device"
  rm -f "$image"
}
trap cleanup EXIT

say() { echo "$(date +%T) $*" | tee -a "$log"; }

# Bytes written to the device since it was made.
written() {
  local fields
  read -r -a fields <"/sys/block/${device#/dev/}/stat"
  echo $((fields[6] * 512))
}

# No process of its own, as it is asked all the time.
milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# A number below $1; RANDOM alone has 15 bits.
below() { echo $(((RANDOM << 15 | RANDOM) % $1)); }

# Runs patch with the arguments and kills it: after a random time, or after a random share of the bytes.
kill_one() {
  local delta=$1 verify=$2 before pid code=0 share=0 until
  before=$(written)
  "$blkpatch" -q patch --verify "$verify" "$delta" "$device" >>"$log" 2>&1 &
  pid=$!
  until=$(($(milliseconds) + $(below "$whole")))
  if ((RANDOM % 2)); then
    share=$(below $((planned / 2)))
    until=$(($(milliseconds) + 10 * whole))
  fi
  while kill -0 "$pid" 2>/dev/null && (($(milliseconds) < until)); do
    if ((share > 0 && $(written) - before >= share)); then break; fi
    sleep 0.02
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || code=$?
  case $code in
    137) if (($(written) == before)); then phase=before; else phase=writing; fi ;;
    0) phase=missed ;; # it was done
    *)
      say "LOST: patch ended with $code, see $log"
      losses=$((losses + 1))
      phase=lost
      ;;
  esac
}

say "deltas both ways"
[ -e "$work/forward.delta" ] || "$blkpatch" -q diff "$old" "$new" -o "$work/forward.delta"
[ -e "$work/backward.delta" ] || "$blkpatch" -q diff "$new" "$old" -o "$work/backward.delta"
cp --reflink=auto --sparse=always "$old" "$image"
device=$(losetup -f --show "$image")

say "one run each way without a kill, on $device"
begun=$(milliseconds)
start=$(written)
"$blkpatch" -q patch "$work/forward.delta" "$device"
whole=$(($(milliseconds) - begun))
planned=$(($(written) - start))
cmp "$device" "$new"
"$blkpatch" -q patch "$work/backward.delta" "$device"
cmp "$device" "$old"
say "a run takes $whole ms and writes $planned bytes"

declare -A count=([before]=0 [writing]=0 [after]=0 [missed]=0 [full]=0 [touched]=0)
done_kills=0 rounds=0 losses=0 most=0 phase=
while ((done_kills < kills)); do
  rounds=$((rounds + 1))
  if ((rounds % 2)); then delta=$work/forward.delta goal=$new; else delta=$work/backward.delta goal=$old; fi
  in_round=0 planned_kills=$((1 + RANDOM % 8)) last=
  while ((in_round < planned_kills && done_kills < kills)); do
    # Two of three with the full check; the last run always has it.
    verify=full
    if ((RANDOM % 3 == 0)); then verify=touched; fi
    kill_one "$delta" "$verify"
    if [ "$phase" = lost ]; then break; fi
    if [ "$phase" = missed ]; then count[missed]=$((count[missed] + 1)) last=; break; fi
    in_round=$((in_round + 1)) done_kills=$((done_kills + 1)) last=$phase
    count[$phase]=$((count[$phase] + 1)) count[$verify]=$((count[$verify] + 1))
  done
  ((in_round <= most)) || most=$in_round
  code=0
  said=$("$blkpatch" patch "$delta" "$device" 2>&1) || code=$?
  echo "$said" >>"$log"
  if [ "$last" = writing ] && [[ $said == *"already holds"* ]]; then
    count[writing]=$((count[writing] - 1)) count[after]=$((count[after] + 1))
  fi
  if ((code != 0)) || ! cmp "$device" "$goal" >>"$log" 2>&1; then
    losses=$((losses + 1))
    say "LOST: round $rounds ended with $code, see $log"
    break
  fi
  say "round $rounds: $in_round kills, $done_kills in all"
done

say "$done_kills kills in $rounds rounds (up to $most in one): ${count[before]} before that run wrote, ${count[writing]}" \
  "while it wrote, ${count[after]} after its last write; ${count[missed]} came too late; ${count[full]} with the full" \
  "check, ${count[touched]} with --verify touched; losses: $losses"
((losses == 0))
